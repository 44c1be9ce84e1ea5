//! JPEG as cameras send it: what its headers say, and decoding that refuses a picture whose data stops before the picture does.

use image::metadata::Orientation;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use super::huffman::standard_tables;

/// Markers of ITU-T T.81, table B.1: the byte after 0xFF.
const TEM: u8 = 0x01;
const SOF0: u8 = 0xC0;
const SOF15: u8 = 0xCF;
const DHT: u8 = 0xC4;
const JPG: u8 = 0xC8;
const DAC: u8 = 0xCC;
const RST0: u8 = 0xD0;
const RST7: u8 = 0xD7;
const SOI: u8 = 0xD8;
const EOI: u8 = 0xD9;
const SOS: u8 = 0xDA;
const DQT: u8 = 0xDB;
const DRI: u8 = 0xDD;
const APP0: u8 = 0xE0;
const APP1: u8 = 0xE1;
/// Says how colours are to be taken (Adobe).
const APP14: u8 = 0xEE;

const EXIF: &[u8] = b"Exif\0\0";

/// The most scans of one picture. Encoders write ten or so; each costs a pass over the whole picture, whatever its length in the file.
const MAX_SCANS: usize = 32;

/// What stands behind the picture's data while it is decoded: one bits, which no code consists of. A decoder that needs more data than
/// there is meets them and fails, where it would take an end marker for zeros without end.
const SENTINEL: [u8; 32] = {
    let mut bytes = [0; 32];
    let mut i = 0;
    while i < bytes.len() {
        bytes[i] = 0xFF;
        i += 2;
    }
    bytes
};

/// Zeros that a buffer longer than the picture ends with are more than these.
const FILLING: usize = 16;

const STOPS: &str = "its data stops before the picture does";
const NO_FRAME: &str = "it has no frame header";

/// What a frame header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    pub width: u16,
    pub height: u16,
    /// Bits of a sample.
    pub bits: u8,
    /// 1: grey.
    pub components: u8,
}

/// The frame header of a JPEG, for which nothing is decoded.
pub fn frame(data: &[u8]) -> Result<Frame, String> {
    let mut reader = Reader::new(data);
    while let Some(segment) = reader.segment()? {
        if segment.is_frame() {
            return Frame::parse(segment.content);
        }
        if segment.marker == SOS {
            break;
        }
    }
    Err(NO_FRAME.to_string())
}

/// The picture as packed RGB bytes, not yet turned, and how it is to be turned.
pub fn decode(data: &[u8]) -> Result<(Frame, Vec<u8>, Orientation), String> {
    let picture = Picture::read(data)?;
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX)
        .jpeg_set_max_scans(MAX_SCANS)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&picture.stream), options);
    let pixels = decoder.decode().map_err(|error| match picture.ended {
        true => format!("it is damaged, or its data stops before the picture does ({error})"),
        false => format!("{STOPS} ({error})"),
    })?;
    Ok((picture.frame, pixels, picture.orientation))
}

/// A marker and what belongs to it.
#[derive(Debug, Clone, Copy)]
struct Segment<'a> {
    marker: u8,
    /// Without the length.
    content: &'a [u8],
}

impl Segment<'_> {
    fn is_frame(&self) -> bool {
        (SOF0..=SOF15).contains(&self.marker) && ![DHT, JPG, DAC].contains(&self.marker)
    }

    /// Needed for decoding; the others can be anything.
    fn is_kept(&self) -> bool {
        self.is_frame() || [DHT, DAC, DQT, DRI, APP0, APP14].contains(&self.marker)
    }
}

/// Goes through the segments of a file.
struct Reader<'a> {
    data: &'a [u8],
    at: usize,
    /// The end marker has been read.
    ended: bool,
}

impl<'a> Reader<'a> {
    fn new(data: &'a [u8]) -> Self {
        Self {
            data,
            at: 0,
            ended: false,
        }
    }

    /// The next segment, wherever it begins; none at the end marker or at the end of the data.
    fn segment(&mut self) -> Result<Option<Segment<'a>>, String> {
        while let Some(marker) = self.marker() {
            match marker {
                EOI => {
                    self.ended = true;
                    return Ok(None);
                }
                SOI | TEM | RST0..=RST7 => {}
                marker => {
                    let rest = &self.data[self.at..];
                    let length = rest.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
                    let content = length.and_then(|length| rest.get(2..usize::from(length)));
                    let content = content.ok_or(STOPS)?;
                    self.at += 2 + content.len();
                    return Ok(Some(Segment { marker, content }));
                }
            }
        }
        Ok(None)
    }

    /// The next marker, behind any bytes that are none.
    fn marker(&mut self) -> Option<u8> {
        let rest = &self.data[self.at..];
        let pairs = rest.windows(2);
        let found = pairs
            .enumerate()
            .find(|(_, pair)| pair[0] == 0xFF && !matches!(pair[1], 0x00 | 0xFF));
        let (before, pair) = found?;
        self.at += before + 2;
        Some(pair[1])
    }

    /// The coded data of a scan, up to the next marker that does not belong to it or to the end of the data.
    fn scan(&mut self) -> &'a [u8] {
        let data = &self.data[self.at..];
        let mut length = 0;
        while let Some(found) = data[length..].iter().position(|&byte| byte == 0xFF) {
            let marker = length + found;
            match data.get(marker + 1) {
                Some(0x00 | RST0..=RST7) => length = marker + 2,
                Some(0xFF) => length = marker + 1,
                Some(_) => {
                    self.at += marker;
                    return &data[..marker];
                }
                None => {
                    self.at = self.data.len();
                    return without_filling(&data[..marker]);
                }
            }
        }
        self.at = self.data.len();
        without_filling(data)
    }
}

impl Frame {
    fn parse(content: &[u8]) -> Result<Self, String> {
        let Some(&[bits, h1, h0, w1, w0, components]) = content.first_chunk() else {
            return Err("its frame header is too short".to_string());
        };
        Ok(Self {
            width: u16::from_be_bytes([w1, w0]),
            height: u16::from_be_bytes([h1, h0]),
            bits,
            components,
        })
    }
}

/// Of each component, the lowest bit that has come of each coefficient; none of most before the first scan.
struct Coverage {
    identifiers: Vec<u8>,
    low: Vec<[Option<u8>; 64]>,
}

impl Coverage {
    /// Of a frame header's components.
    fn new(frame: &[u8]) -> Self {
        let components = frame.get(6..).unwrap_or_default().as_chunks::<3>().0;
        let identifiers: Vec<u8> = components.iter().map(|[id, ..]| *id).collect();
        Self {
            low: vec![[None; 64]; identifiers.len()],
            identifiers,
        }
    }

    /// Takes note of a scan by its header.
    fn add(&mut self, scan: &[u8]) {
        let Some((&count, rest)) = scan.split_first() else {
            return;
        };
        let count = usize::from(count);
        let Some(&[first, last, bits]) = rest.get(2 * count..).and_then(|r| r.first_chunk()) else {
            return;
        };
        for [component, _] in rest[..2 * count].as_chunks::<2>().0 {
            let known = self.identifiers.iter().position(|id| id == component);
            let Some(low) = known.map(|known| &mut self.low[known]) else {
                continue;
            };
            let (first, last) = (usize::from(first), usize::from(last).min(63));
            if let Some(low) = low.get_mut(first..=last) {
                low.fill(Some(bits & 0x0F));
            }
        }
    }

    /// Every component has come, in whatever quality.
    fn any(&self) -> bool {
        self.low.iter().all(|low| low[0].is_some())
    }

    /// Nothing more can come.
    fn all(&self) -> bool {
        let done = |low: &[Option<u8>; 64]| low.iter().all(|bit| *bit == Some(0));
        self.low.iter().all(done)
    }
}

/// A JPEG made ready for the decoder.
struct Picture {
    frame: Frame,
    orientation: Orientation,
    /// Whether there was an end marker.
    ended: bool,
    /// The picture without what decoding does not need, with the tables that it lacks, and with the sentinel behind its data.
    stream: Vec<u8>,
}

impl Picture {
    fn read(data: &[u8]) -> Result<Self, String> {
        let mut reader = Reader::new(data);
        let mut stream = Vec::with_capacity(data.len() + 512);
        stream.extend([0xFF, SOI]);
        let mut frame: Option<(Frame, Coverage)> = None;
        let mut orientation = Orientation::NoTransforms;
        let (mut has_tables, mut scans, mut end) = (false, 0, 0);
        while let Some(segment) = reader.segment()? {
            match segment.marker {
                APP1 => {
                    let exif = segment.content.strip_prefix(EXIF);
                    let given = exif.and_then(Orientation::from_exif_chunk);
                    orientation = given.unwrap_or(orientation);
                }
                DHT => has_tables = true,
                SOS => {
                    let (_, coverage) = frame.as_mut().ok_or(NO_FRAME)?;
                    coverage.add(segment.content);
                    scans += 1;
                    if scans > MAX_SCANS {
                        return Err(format!("it has more than {MAX_SCANS} scans"));
                    }
                    if !std::mem::replace(&mut has_tables, true) {
                        write(&mut stream, DHT, &standard_tables());
                    }
                    write(&mut stream, SOS, segment.content);
                    stream.extend(reader.scan());
                    end = stream.len();
                }
                _ if segment.is_frame() && frame.is_none() => {
                    let parsed = Frame::parse(segment.content)?;
                    frame = Some((parsed, Coverage::new(segment.content)));
                }
                _ => {}
            }
            if segment.is_kept() {
                write(&mut stream, segment.marker, segment.content);
            }
        }
        let (frame, coverage) = frame.ok_or(NO_FRAME)?;
        let whole = match reader.ended {
            true => coverage.any(),
            false => coverage.all(),
        };
        if scans == 0 || !whole {
            return Err(STOPS.to_string());
        }
        stream.truncate(end);
        stream.extend(SENTINEL);
        stream.extend([0xFF, EOI]);
        Ok(Self {
            frame,
            orientation,
            ended: reader.ended,
            stream,
        })
    }
}

/// Appends a segment.
fn write(stream: &mut Vec<u8>, marker: u8, content: &[u8]) {
    // A segment that was read has this length, and the standard tables are short.
    let length = (content.len() + 2) as u16;
    stream.extend([0xFF, marker]);
    stream.extend(length.to_be_bytes());
    stream.extend(content);
}

/// The data of a scan that no marker ends, without the zeros that fill up its buffer. Two are left, as data can end with some.
fn without_filling(scan: &[u8]) -> &[u8] {
    let zeros = scan.iter().rev().take_while(|&&byte| byte == 0).count();
    match zeros > FILLING {
        true => &scan[..scan.len() - zeros + 2],
        false => scan,
    }
}
