//! Lays out an answer: header, the question as it came, answers, authority, additional, OPT.

use crate::query::{HEADER, OPT_LENGTH, Query, Rcode, UDP_LIMIT};
use crate::zone::records;

use super::reserve;

/// Our OPT: root, type 41, the size that we accept, no flags.
const OPT: [u8; OPT_LENGTH] = [0, 0, 41, (UDP_LIMIT >> 8) as u8, (UDP_LIMIT & 0xff) as u8, 0, 0, 0, 0, 0, 0];

/// An answer in the making. Writes past the limit are left out, never cut.
pub(crate) struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
    /// Where records must end, the OPT's room taken off.
    end: usize,
    counts: [u16; 3],
    flags: [u8; 2],
    edns: bool,
}

impl<'a> Writer<'a> {
    #[inline]
    pub fn new(out: &'a mut [u8], query: &Query<'_>, limit: usize) -> Self {
        let limit = limit.min(out.len());
        let end = limit.saturating_sub(reserve(query));
        let asked = query.bytes.first_chunk::<4>().copied().unwrap_or_default();
        let mut writer = Self {
            out,
            at: 0,
            end,
            counts: [0; 3],
            // QR, AA, RD as asked; RA because we do recurse, CD as asked.
            flags: [0x84 | (asked[2] & 1), 0x80 | (asked[3] & 0x10)],
            edns: query.edns.is_some(),
        };
        writer.push(&[asked[0], asked[1], 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        writer.push(query.question());
        writer
    }

    #[inline]
    fn push(&mut self, bytes: &[u8]) -> bool {
        let next = self.at + bytes.len();
        match self.out.get_mut(self.at..next) {
            Some(room) if next <= self.end => {
                room.copy_from_slice(bytes);
                self.at = next;
                true
            }
            _ => false,
        }
    }

    /// Bytes that are left for records.
    #[inline]
    pub fn room(&self) -> usize {
        self.end.saturating_sub(self.at)
    }

    /// Where the next byte goes.
    pub fn position(&self) -> usize {
        self.at
    }

    #[inline]
    pub fn answers(&mut self, records: &[u8], count: usize) {
        if self.push(records) {
            self.counts[0] += count as u16;
        } else {
            self.truncated();
        }
    }

    /// The zone's SOA with its three pointers at `zone`.
    #[inline]
    pub fn authority(&mut self, soa: &[u8], zone: [u8; 2]) {
        let at = self.at;
        if !self.push(soa) {
            return self.truncated();
        }
        self.counts[1] += 1;
        self.point(at, zone);
    }

    /// The SOA as the answer itself.
    pub fn soa_answer(&mut self, soa: &[u8], zone: [u8; 2]) {
        let at = self.at;
        self.answers(soa, 1);
        if self.at > at {
            self.point(at, zone);
        }
    }

    fn point(&mut self, at: usize, zone: [u8; 2]) {
        for offset in records::SOA_POINTERS {
            if let Some(place) = self.out.get_mut(at + offset..at + offset + 2) {
                place.copy_from_slice(&zone);
            }
        }
    }

    /// The lengths of the answers, the first of which begins at `start`.
    pub fn answered(&self, start: usize) -> Vec<usize> {
        let written = self.out.get(start..self.at).unwrap_or_default();
        records::records(written).take(usize::from(self.counts[0])).map(<[u8]>::len).collect()
    }

    /// Bytes that are written already.
    pub fn written(&mut self, range: std::ops::Range<usize>) -> Option<&mut [u8]> {
        self.out.get_mut(range).filter(|_| self.at > 0)
    }

    /// What fits: additional records may be left out without TC (RFC 2181 §9).
    pub fn additional(&mut self, bytes: &[u8]) {
        for record in records::records(bytes) {
            if !self.push(record) {
                break;
            }
            self.counts[2] += 1;
        }
    }

    /// One record of a message that is given on; false when it does not fit.
    pub fn record(&mut self, section: usize, bytes: &[u8]) -> bool {
        let fits = self.push(bytes);
        if let Some(count) = self.counts.get_mut(section).filter(|_| fits) {
            *count += 1;
        }
        fits
    }

    #[inline]
    pub fn truncated(&mut self) {
        self.flags[0] |= 0x02;
    }

    /// Not from our own data.
    pub fn not_authoritative(&mut self) {
        self.flags[0] &= !0x04;
    }

    /// Writes header and OPT; how long the answer is, or 0 if not even the question fitted.
    #[inline]
    pub fn finish(mut self, rcode: Rcode) -> usize {
        if self.edns {
            let mut opt = OPT;
            opt[5] = (rcode.0 >> 4) as u8;
            self.end += OPT_LENGTH;
            if self.push(&opt) {
                self.counts[2] += 1;
            }
        }
        let [answers, authority, additional] = self.counts.map(u16::to_be_bytes);
        let Some(header) = self.out.first_chunk_mut::<HEADER>() else { return 0 };
        header[2] = self.flags[0];
        header[3] = self.flags[1] | (rcode.0 as u8 & 0x0f);
        header[6..8].copy_from_slice(&answers);
        header[8..10].copy_from_slice(&authority);
        header[10..12].copy_from_slice(&additional);
        self.at
    }
}
