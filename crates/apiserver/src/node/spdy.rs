//! What of SPDY/3.1 `kubectl port-forward` speaks (draft-mbelshe-httpbis-spdy-00; KEP-4006 puts it into a WebSocket):
//! streams that are opened, written, half closed and reset, and pings. Frames in and out as bytes, no I/O.
//!
//! ```text
//! control  1│version 3│type    flags│length   payload       data  0│stream    flags│length   payload
//!           2 bytes     2       1     3                             4            1     3
//! ```
//! Neither side keeps windows: Kubernetes' own implementation has none (moby/spdystream), so WINDOW_UPDATE is nobody's.

use std::collections::BTreeMap;

use flate2::{Decompress, FlushDecompress};

const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FIN: u8 = 1;
const HEAD: usize = 8;
/// More than a frame of kubectl's ever has (it copies by 32 KiB): a longer one is a broken stream.
const LONGEST: usize = 1 << 20;
/// Of one frame's headers, unpacked.
const MOST_HEADERS: usize = 64 << 10;

/// What the other side says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Open { stream: u32, headers: BTreeMap<String, String>, last: bool },
    Data { stream: u32, bytes: Vec<u8>, last: bool },
    Reset { stream: u32 },
    Ping { id: u32 },
    GoAway,
}

/// The bytes that came, up to the frame that is not whole yet.
pub(crate) struct Decoder {
    bytes: Vec<u8>,
    headers: Headers,
}

/// What the other side sent is not what it promised to speak.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Broken(&'static str);

impl Decoder {
    pub(crate) fn new() -> Self {
        Self { bytes: Vec::new(), headers: Headers::new() }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame that means something here.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, Broken> {
        loop {
            let Some(head) = self.bytes.first_chunk::<HEAD>().copied() else { return Ok(None) };
            let [a, b, c, d, flags, length @ ..] = head;
            let [e, f, g] = length;
            let length = u32::from_be_bytes([0, e, f, g]) as usize;
            if length > LONGEST {
                return Err(Broken("a frame is too long"));
            }
            let Some(payload) = self.bytes.get(HEAD..HEAD + length) else { return Ok(None) };
            let payload = payload.to_vec();
            self.bytes.drain(..HEAD + length);
            let word = u32::from_be_bytes([a, b, c, d]);
            let last = flags & FIN != 0;
            if word >> 31 == 0 {
                return Ok(Some(Frame::Data { stream: word, bytes: payload, last }));
            }
            if u16::from_be_bytes([a & 0x7f, b]) != VERSION {
                return Err(Broken("a control frame is of another version than SPDY/3"));
            }
            if let Some(frame) = self.control(u16::from_be_bytes([c, d]), last, &payload)? {
                return Ok(Some(frame));
            }
        }
    }

    fn control(&mut self, kind: u16, last: bool, payload: &[u8]) -> Result<Option<Frame>, Broken> {
        let number = || payload.first_chunk().map(|bytes| u32::from_be_bytes(*bytes) & 0x7fff_ffff);
        let number = || number().ok_or(Broken("a control frame ends early"));
        Ok(Some(match kind {
            SYN_STREAM => {
                // The stream, the one it belongs to, a priority and a slot come before the headers.
                let packed = payload.get(10..).ok_or(Broken("SYN_STREAM ends early"))?;
                Frame::Open { stream: number()?, headers: self.headers.unpack(packed)?, last }
            }
            RST_STREAM => Frame::Reset { stream: number()? },
            PING => Frame::Ping { id: number()? },
            GOAWAY => Frame::GoAway,
            // SETTINGS, HEADERS, WINDOW_UPDATE change nothing here.
            _ => return Ok(None),
        }))
    }
}

/// Some bytes of a stream; `last`: and no more.
pub(crate) fn data(stream: u32, bytes: &[u8], last: bool) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap_or_default() & 0x00ff_ffff;
    let mut frame = stream.to_be_bytes().to_vec();
    frame.extend((u32::from(if last { FIN } else { 0 }) << 24 | length).to_be_bytes());
    frame.extend(bytes);
    frame
}

fn control(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = (VERSION | 0x8000).to_be_bytes().to_vec();
    frame.extend(kind.to_be_bytes());
    frame.extend(u32::try_from(payload.len()).unwrap_or_default().to_be_bytes());
    frame.extend(payload);
    frame
}

pub(crate) fn ping(id: u32) -> Vec<u8> {
    control(PING, &id.to_be_bytes())
}

/// Answers to opened streams. Their headers, none, are packed by one zlib stream (RFC 1950) over all of them.
#[derive(Default)]
pub(crate) struct Replies {
    begun: bool,
}

impl Replies {
    pub(crate) fn reply(&mut self, stream: u32) -> Vec<u8> {
        let mut payload = stream.to_be_bytes().to_vec();
        if !std::mem::replace(&mut self.begun, true) {
            // Deflate with a window of 32 KiB, and that there is a dictionary: this one.
            payload.extend([0x78, 0x20]);
            payload.extend(adler32(&dictionary()).to_be_bytes());
        }
        // A count of headers: 0. The empty block flushes (Z_SYNC_FLUSH): Go's reader gives nothing out before it, and
        // keeps for ever that the bytes ended early.
        payload.extend([stored(&[0; 4]), stored(&[])].concat());
        control(SYN_REPLY, &payload)
    }
}

/// One block of deflate that is not compressed (RFC 1951, 3.2.4), and not the last.
fn stored(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap_or_default();
    let mut block = vec![0];
    block.extend(length.to_le_bytes());
    block.extend((!length).to_le_bytes());
    block.extend(bytes);
    block
}

/// Headers of all frames are one zlib stream.
struct Headers {
    inflate: Decompress,
    begun: bool,
}

impl Headers {
    fn new() -> Self {
        Self { inflate: Decompress::new(false), begun: false }
    }

    fn unpack(&mut self, packed: &[u8]) -> Result<BTreeMap<String, String>, Broken> {
        let mut packed = packed;
        if !std::mem::replace(&mut self.begun, true) {
            // The zlib header with the dictionary's number: which one it is, is known.
            packed = packed.get(6..).ok_or(Broken("the headers end early"))?;
            // To inflate, a dictionary is what came before the first block.
            self.inflate(&stored(&dictionary()))?;
        }
        let bytes = self.inflate(packed)?;
        pairs(&bytes).ok_or(Broken("the headers end early"))
    }

    fn inflate(&mut self, packed: &[u8]) -> Result<Vec<u8>, Broken> {
        let mut out = Vec::new();
        let (mut left, broken) = (packed, Broken("the headers cannot be unpacked"));
        loop {
            out.reserve(4096);
            let (taken, had) = (self.inflate.total_in(), out.len());
            let done = self.inflate.decompress_vec(left, &mut out, FlushDecompress::Sync);
            if done.is_err() || out.len() > MOST_HEADERS {
                return Err(broken);
            }
            let taken = usize::try_from(self.inflate.total_in() - taken).unwrap_or_default();
            left = left.get(taken..).unwrap_or_default();
            let stands = taken == 0 && out.len() == had;
            if left.is_empty() && (stands || out.len() < out.capacity()) {
                return Ok(out);
            }
            if stands {
                return Err(broken);
            }
        }
    }
}

/// A count, then each name and value with its length before it.
fn pairs(bytes: &[u8]) -> Option<BTreeMap<String, String>> {
    fn number(bytes: &mut &[u8]) -> Option<usize> {
        let (number, rest) = bytes.split_first_chunk()?;
        *bytes = rest;
        usize::try_from(u32::from_be_bytes(*number)).ok()
    }
    fn text(bytes: &mut &[u8]) -> Option<String> {
        let length = number(bytes)?;
        let (text, rest) = bytes.split_at_checked(length)?;
        *bytes = rest;
        String::from_utf8(text.to_vec()).ok()
    }
    let mut rest = bytes;
    let count = number(&mut rest)?;
    (0..count).map(|_| Some((text(&mut rest)?.to_lowercase(), text(&mut rest)?))).collect()
}

fn adler32(bytes: &[u8]) -> u32 {
    let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65_521;
        (a, (b + a) % 65_521)
    });
    b << 16 | a
}

/// The words of the draft's dictionary (2.6.10.1), each with its length before it, and its end.
fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in WORDS.split(',') {
        bytes.extend(u32::try_from(word.len()).unwrap_or_default().to_be_bytes());
        bytes.extend(word.as_bytes());
    }
    bytes.extend(END.as_bytes());
    bytes
}

const WORDS: &str = "options,head,post,put,delete,trace,accept,accept-charset,accept-encoding,accept-language,\
    accept-ranges,age,allow,authorization,cache-control,connection,content-base,content-encoding,content-language,\
    content-length,content-location,content-md5,content-range,content-type,date,etag,expect,expires,from,host,if-match,\
    if-modified-since,if-none-match,if-range,if-unmodified-since,last-modified,location,max-forwards,pragma,\
    proxy-authenticate,proxy-authorization,range,referer,retry-after,server,te,trailer,transfer-encoding,upgrade,\
    user-agent,vary,via,warning,www-authenticate,method,get,status,200 OK,version,HTTP/1.1,url,public,set-cookie,\
    keep-alive,origin";
const END: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 \
    Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not \
    Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov \
    Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, \
    GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,\
    publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

#[cfg(test)]
mod tests {
    use super::*;

    /// As a client opens a stream; the headers in a block that is not compressed.
    fn open(stream: u32, headers: &[(&str, &str)], first: bool) -> Vec<u8> {
        let text = |text: &str| [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        headers.iter().for_each(|(name, value)| plain.extend([text(name), text(value)].concat()));
        let mut payload = [&stream.to_be_bytes()[..], &[0; 6]].concat();
        if first {
            payload.extend([0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2]);
        }
        payload.extend(stored(&plain));
        control(SYN_STREAM, &payload)
    }

    #[test]
    fn the_dictionary_is_the_drafts() {
        assert_eq!((dictionary().len(), adler32(&dictionary())), (1423, 0xe3c6_a7c2));
    }

    #[test]
    fn streams_are_opened_written_and_closed_in_whatever_pieces_they_come() {
        let sent = [
            open(1, &[("streamtype", "error"), ("port", "8080")], true),
            open(3, &[("Streamtype", "data")], false),
            data(3, b"hello", false),
            ping(7),
            data(3, b"", true),
            control(RST_STREAM, &[0, 0, 0, 3, 0, 0, 0, 5]),
            control(9, &[0; 8]),
            control(GOAWAY, &[0; 8]),
        ];
        let headers = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let expected = [
            Frame::Open {
                stream: 1,
                headers: headers(&[("streamtype", "error"), ("port", "8080")]),
                last: false,
            },
            Frame::Open { stream: 3, headers: headers(&[("streamtype", "data")]), last: false },
            Frame::Data { stream: 3, bytes: b"hello".to_vec(), last: false },
            Frame::Ping { id: 7 },
            Frame::Data { stream: 3, bytes: Vec::new(), last: true },
            Frame::Reset { stream: 3 },
            Frame::GoAway,
        ];
        let sent = sent.concat();
        for piece in [1, 7, sent.len()] {
            let (mut decoder, mut seen) = (Decoder::new(), Vec::new());
            for bytes in sent.chunks(piece) {
                decoder.push(bytes);
                while let Some(frame) = decoder.next().expect("whole") {
                    seen.push(frame);
                }
            }
            assert_eq!(seen, expected, "in pieces of {piece}");
        }
    }

    #[test]
    fn what_is_no_spdy_is_refused() {
        for (bytes, why) in [
            (vec![0x80, 2, 0, 1, 0, 0, 0, 0], "a control frame is of another version than SPDY/3"),
            (vec![0, 0, 0, 1, 0, 0xff, 0xff, 0xff], "a frame is too long"),
            (control(SYN_STREAM, &[0; 4]), "SYN_STREAM ends early"),
            (control(SYN_STREAM, &[0xff; 40]), "the headers cannot be unpacked"),
            (control(PING, &[]), "a control frame ends early"),
        ] {
            let mut decoder = Decoder::new();
            decoder.push(&bytes);
            assert_eq!(decoder.next(), Err(Broken(why)), "{bytes:?}");
        }
    }

    /// Whoever unpacks them has the dictionary, too: the answer of a first and of a second stream.
    #[test]
    fn replies_are_one_zlib_stream() {
        let mut replies = Replies::default();
        let (first, second) = (replies.reply(1), replies.reply(3));
        assert_eq!(first.get(12..18), Some(&[0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2][..]));
        assert!(first.ends_with(&[0, 0, 0xff, 0xff]) && second.ends_with(&[0, 0, 0xff, 0xff]));
        let mut headers = Headers::new();
        for packed in [first.get(12..), second.get(12..)] {
            assert_eq!(headers.unpack(packed.expect("headers")), Ok(BTreeMap::new()));
        }
    }
}
