//! Ways to be wrong, each of which the model must notice.

/// See the module header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Object storage says that it has a layer, and has not.
    LostLayer,
    /// It says that it has a manifest, and has not.
    LostManifest,
    /// A layer's object is deleted that the newest manifest names.
    DeletedLayer,
    /// A new owner does not see the newest manifest.
    StaleManifest,
    /// A record is not taken in.
    DroppedRecord,
    /// A page gets an image of an earlier version.
    OldImage,
    /// An image is stored with an LSN at which the page was another.
    EarlyImage,
    /// A branch point is given up while the branch is there.
    ForgottenBranch,
    /// More of history is given up than was allowed.
    HighHorizon,
    /// A branch begins at another LSN than it says.
    WrongBranchPoint,
    /// A byte of a layer's object is flipped, and the local file gone.
    RottenObject,
    /// A new owner takes a branch for detached that is not.
    NoParent,
}

impl Sabotage {
    pub const ALL: [Sabotage; 12] = [
        Sabotage::LostLayer,
        Sabotage::LostManifest,
        Sabotage::DeletedLayer,
        Sabotage::StaleManifest,
        Sabotage::DroppedRecord,
        Sabotage::OldImage,
        Sabotage::EarlyImage,
        Sabotage::ForgottenBranch,
        Sabotage::HighHorizon,
        Sabotage::WrongBranchPoint,
        Sabotage::RottenObject,
        Sabotage::NoParent,
    ];
}
