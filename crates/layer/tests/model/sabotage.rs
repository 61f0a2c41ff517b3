//! Rules that can be broken.

/// One broken rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// A flush leaves out a value.
    DroppedDelta,
    /// A flush writes a filter that knows no page.
    WrongFilter,
    /// A flush says that it has more than it has.
    FlushedTooMuch,
    /// A merge leaves out a level-0 layer and says that it has it.
    MergedTooMuch,
    /// A merge reads its two newest inputs in the wrong order.
    WrongOrder,
    /// An image lacks the newest value.
    ImageTooOld,
    /// History that was not merged is forgotten.
    ForgottenHistory,
    /// Branch points are not read points.
    ForgottenBranch,
    /// The horizon is taken one LSN too late.
    LateHorizon,
    /// The oldest section is left out when sections are put together.
    DroppedSection,
    /// The manifest is stored before the layers that it names.
    CommitFirst,
    /// Layers are removed before the manifest that does not name them is stored.
    RemoveFirst,
    /// A layer is removed that the manifest names.
    RemovedInUse,
    /// The manifest before the newest one is taken at the start.
    StaleManifest,
    /// An owner that was superseded goes on to remove layers.
    SupersededRemoves,
}

impl Sabotage {
    /// All of them.
    pub const ALL: [Sabotage; 15] = [
        Sabotage::DroppedDelta,
        Sabotage::WrongFilter,
        Sabotage::FlushedTooMuch,
        Sabotage::MergedTooMuch,
        Sabotage::WrongOrder,
        Sabotage::ImageTooOld,
        Sabotage::ForgottenHistory,
        Sabotage::ForgottenBranch,
        Sabotage::LateHorizon,
        Sabotage::DroppedSection,
        Sabotage::CommitFirst,
        Sabotage::RemoveFirst,
        Sabotage::RemovedInUse,
        Sabotage::StaleManifest,
        Sabotage::SupersededRemoves,
    ];
}
