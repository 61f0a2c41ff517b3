//! Answers with pages on their way out.
//!
//! A page is not copied behind what is sent before it, as [`frame::put`](crate::frame::put) would: the bytes between pages lie in
//! one buffer, pages stay where they were built, and a vectored write takes both in turn. What is sent is byte for byte the
//! same frame.
//!
//! ```text
//!   between:  [frame, request, LSN, page 1's head] [page 2's head] [...]
//!   pages:                                  [page 1]        [page 2]
//! ```

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{self, WireType};

use crate::frame::{FrameError, HEADER_BYTES, Header};
use crate::v1;

/// Numbers of the fields of [`v1::GetPagesResponse`] and [`v1::PageResult`].
mod field {
    pub(super) const REQUEST_ID: u32 = 1;
    pub(super) const SERVED_LSN: u32 = 2;
    pub(super) const PAGES: u32 = 3;
    pub(super) const STATUS: u32 = 1;
    pub(super) const PAGE: u32 = 2;
    pub(super) const MESSAGE: u32 = 3;
}

/// See the module header. As a [`Buf`] it is what remains to be sent.
#[derive(Debug, Default)]
pub struct Outbound {
    /// What is not pages, one behind the other.
    between: BytesMut,
    /// Pages, none of them empty, with the number of bytes of `between` that go before each.
    pages: VecDeque<(usize, Bytes)>,
    page_bytes: usize,
    /// Bytes of `between` that belong before a page.
    placed: usize,
}

impl Outbound {
    /// Puts an answer, as a frame, behind what is here.
    ///
    /// # Errors
    /// It is too long, and everything is as it was.
    pub fn put(&mut self, answer: v1::GetPagesResponse) -> Result<(), FrameError> {
        let header = Header::of_message(answer.encoded_len())?;
        let start = self.between.len();
        self.between.extend_from_slice(&[0; HEADER_BYTES]);
        let mut sum = Sum {
            crc: header.begin(),
            summed: self.between.len(),
        };
        put_number(field::REQUEST_ID, answer.request_id, &mut self.between);
        put_number(field::SERVED_LSN, answer.served_lsn, &mut self.between);
        for result in answer.pages {
            self.put_page(result, &mut sum);
        }
        sum.add_between(&self.between);
        if let Some(place) = self.between.get_mut(start..).and_then(<[u8]>::first_chunk_mut) {
            *place = header.finish(sum.crc);
        }
        Ok(())
    }

    fn put_page(&mut self, result: v1::PageResult, sum: &mut Sum) {
        let between = &mut self.between;
        encoding::encode_key(field::PAGES, WireType::LengthDelimited, between);
        encoding::encode_varint(result.encoded_len() as u64, between);
        if result.status != 0 {
            encoding::int32::encode(field::STATUS, &result.status, between);
        }
        if !result.page.is_empty() {
            encoding::encode_key(field::PAGE, WireType::LengthDelimited, between);
            encoding::encode_varint(result.page.len() as u64, between);
            sum.add_between(between);
            sum.crc = crc32c::crc32c_append(sum.crc, &result.page);
            self.page_bytes += result.page.len();
            self.pages.push_back((between.len() - self.placed, result.page));
            self.placed = between.len();
        }
        if !result.message.is_empty() {
            encoding::string::encode(field::MESSAGE, &result.message, between);
        }
    }

    /// Room for what is between pages.
    pub fn capacity(&self) -> usize {
        self.between.capacity()
    }
}

impl Buf for Outbound {
    fn remaining(&self) -> usize {
        self.between.len() + self.page_bytes
    }

    fn chunk(&self) -> &[u8] {
        match self.pages.front() {
            Some((0, page)) => page,
            Some((before, _)) => self.between.get(..*before).unwrap_or_default(),
            None => &self.between,
        }
    }

    fn chunks_vectored<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        let mut rest = &self.between[..];
        let all = self.pages.iter().flat_map(|(before, page)| {
            let (between, after) = rest.split_at_checked(*before).unwrap_or((rest, &[]));
            rest = after;
            [between, &page[..]]
        });
        let mut count = 0;
        for (place, bytes) in out.iter_mut().zip(all.filter(|bytes| !bytes.is_empty())) {
            *place = IoSlice::new(bytes);
            count += 1;
        }
        let Some(place) = out.get_mut(count) else {
            return count;
        };
        let last = self.between.get(self.placed..).unwrap_or_default();
        *place = IoSlice::new(last);
        count + usize::from(!last.is_empty())
    }

    fn advance(&mut self, mut count: usize) {
        while let Some((before, page)) = self.pages.front_mut() {
            let between = count.min(*before);
            *before -= between;
            self.placed -= between;
            self.between.advance(between);
            count -= between;
            let sent = count.min(page.len());
            page.advance(sent);
            self.page_bytes -= sent;
            count -= sent;
            if !page.is_empty() {
                return;
            }
            self.pages.pop_front();
        }
        self.between.advance(count);
    }
}

fn put_number(field: u32, number: u64, out: &mut BytesMut) {
    if number != 0 {
        encoding::uint64::encode(field, &number, out);
    }
}

/// The checksum of a frame that is being put.
struct Sum {
    crc: u32,
    /// What of `between` is in it.
    summed: usize,
}

impl Sum {
    fn add_between(&mut self, between: &[u8]) {
        let new = between.get(self.summed..).unwrap_or_default();
        self.crc = crc32c::crc32c_append(self.crc, new);
        self.summed = between.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame;

    fn page(status: v1::PageStatus, bytes: usize, message: &str) -> v1::PageResult {
        v1::PageResult {
            status: status.into(),
            page: vec![bytes as u8; bytes].into(),
            message: message.to_owned(),
        }
    }

    fn answers() -> Vec<v1::GetPagesResponse> {
        let failed = page(v1::PageStatus::Retry, 0, "not yet");
        let odd = page(v1::PageStatus::Unspecified, 3, "an answer that nobody gives");
        let many = (0..40).map(|n| page(v1::PageStatus::Ok, 8192 - n, "")).collect();
        let lists = [
            vec![],
            vec![page(v1::PageStatus::Ok, 8192, "")],
            vec![failed.clone()],
            vec![v1::PageResult::default(), failed.clone(), odd],
            many,
            vec![page(v1::PageStatus::Ok, 8192, ""), failed],
        ];
        let answer = |(request_id, pages)| v1::GetPagesResponse {
            request_id,
            served_lsn: 300 * request_id,
            pages,
        };
        (0..).zip(lists).map(answer).collect()
    }

    /// What a socket gets that takes at most so many bytes and slices of a write.
    fn sent(out: &mut Outbound, most: usize, slices: usize) -> Vec<u8> {
        let mut sent = Vec::new();
        while out.has_remaining() {
            assert!(!out.chunk().is_empty());
            let mut places = [IoSlice::new(&[]); 64];
            let count = out.chunks_vectored(&mut places[..slices]);
            assert_eq!(*places[0], *out.chunk());
            let all: Vec<u8> = places[..count]
                .iter()
                .flat_map(|bytes| bytes.iter().copied())
                .collect();
            let taken = all.len().min(most);
            sent.extend_from_slice(&all[..taken]);
            out.advance(taken);
        }
        sent
    }

    #[test]
    fn what_is_sent_is_the_frame_that_a_copy_would_be() {
        let mut copied = BytesMut::new();
        for answer in answers() {
            frame::put(&answer, &mut copied).unwrap();
        }
        for (most, slices) in [
            (1, 1),
            (7, 2),
            (5000, 3),
            (8192, 64),
            (100_000, 64),
            (usize::MAX, 64),
        ] {
            let mut out = Outbound::default();
            for answer in answers() {
                out.put(answer).unwrap();
            }
            assert_eq!(out.remaining(), copied.len());
            assert!(
                sent(&mut out, most, slices) == copied,
                "{most} bytes, {slices} slices"
            );
            // And again, behind what was sent before.
            for answer in answers() {
                out.put(answer).unwrap();
            }
            assert!(sent(&mut out, most, slices) == copied);
        }
    }

    #[test]
    fn an_answer_that_is_too_long_leaves_everything_as_it_was() {
        let mut out = Outbound::default();
        let long = v1::GetPagesResponse {
            pages: vec![page(v1::PageStatus::Ok, 8192, ""); 700],
            ..v1::GetPagesResponse::default()
        };
        assert!(matches!(out.put(long), Err(FrameError::TooLong { .. })));
        assert!(!out.has_remaining());
    }
}
