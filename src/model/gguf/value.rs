//! Metadata values of a GGUF file, read where they lie.

/// Arrays within arrays: the format allows them, no key of a language model has them.
const MAX_DEPTH: usize = 4;

/// Reads little-endian numbers and strings from the front; an error says where the bytes end.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// From byte `at` on, if there is one.
    pub fn at_offset(bytes: &'a [u8], at: usize) -> Option<Self> {
        (at <= bytes.len()).then_some(Self { bytes, at })
    }

    /// Bytes read so far.
    pub fn at(&self) -> usize {
        self.at
    }

    pub fn take(&mut self, count: u64) -> Result<&'a [u8], String> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(count) {
            Ok(count) if count <= left => {
                self.at += count;
                Ok(&self.bytes[self.at - count..self.at])
            }
            _ => Err(format!(
                "{count} bytes expected at offset {}, but {left} are left of {}: the file was not copied to its end, or is damaged",
                self.at,
                self.bytes.len()
            )),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    pub fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn text(&mut self) -> Result<&'a str, String> {
        let length = self.u64()?;
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map_err(|_| {
            format!(
                "the string at offset {} is not UTF-8",
                self.at - bytes.len()
            )
        })
    }

    /// Steps over a value of type `kind`.
    pub fn skip(&mut self, kind: Kind, depth: usize) -> Result<(), String> {
        match kind {
            Kind::Text => {
                let length = self.u64()?;
                self.take(length)?;
            }
            Kind::Array => {
                if depth == MAX_DEPTH {
                    return Err(format!(
                        "arrays are nested more than {MAX_DEPTH} deep at offset {}",
                        self.at
                    ));
                }
                let (kind, length) = (Kind::read(self)?, self.u64()?);
                if let Some(width) = kind.width() {
                    self.take(length.saturating_mul(width))?;
                } else {
                    // Every element has a length of its own, so this ends with the file.
                    for _ in 0..length {
                        self.skip(kind, depth + 1)?;
                    }
                }
            }
            _ => {
                self.take(kind.width().unwrap_or(0))?;
            }
        }
        Ok(())
    }
}

/// Types of metadata values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Unsigned(u64),
    Signed(u64),
    Float(u64),
    Bool,
    Text,
    Array,
}

impl Kind {
    pub fn read(cursor: &mut Cursor) -> Result<Self, String> {
        let at = cursor.at;
        Ok(match cursor.u32()? {
            0 => Self::Unsigned(1),
            1 => Self::Signed(1),
            2 => Self::Unsigned(2),
            3 => Self::Signed(2),
            4 => Self::Unsigned(4),
            5 => Self::Signed(4),
            6 => Self::Float(4),
            7 => Self::Bool,
            8 => Self::Text,
            9 => Self::Array,
            10 => Self::Unsigned(8),
            11 => Self::Signed(8),
            12 => Self::Float(8),
            other => {
                return Err(format!(
                    "the value type at offset {at} is {other}, expected 0 to 12"
                ))
            }
        })
    }

    /// Bytes of a value, where all values of the type have the same.
    fn width(self) -> Option<u64> {
        match self {
            Self::Unsigned(width) | Self::Signed(width) | Self::Float(width) => Some(width),
            Self::Bool => Some(1),
            Self::Text | Self::Array => None,
        }
    }
}

/// A metadata value, still in the file.
#[derive(Debug, Clone)]
pub struct Value<'a> {
    kind: Kind,
    cursor: Cursor<'a>,
}

impl<'a> Value<'a> {
    /// `cursor` stands at the value and has been able to step over it.
    pub fn new(kind: Kind, cursor: Cursor<'a>) -> Self {
        Self { kind, cursor }
    }

    /// A whole number that is not negative, of any width and sign.
    pub fn whole(mut self) -> Option<u64> {
        match self.kind {
            Kind::Unsigned(width) => self.bits(width),
            Kind::Signed(width) => {
                let bits = self.bits(width)?;
                (bits >> (width * 8 - 1) == 0).then_some(bits)
            }
            _ => None,
        }
    }

    pub fn float(mut self) -> Option<f64> {
        match self.kind {
            Kind::Float(4) => Some(f32::from_le_bytes(self.cursor.array().ok()?).into()),
            Kind::Float(8) => Some(f64::from_le_bytes(self.cursor.array().ok()?)),
            _ => None,
        }
    }

    pub fn truth(mut self) -> Option<bool> {
        (self.kind == Kind::Bool).then(|| self.cursor.take(1).ok().map(|byte| byte[0] != 0))?
    }

    pub fn text(mut self) -> Option<&'a str> {
        (self.kind == Kind::Text).then(|| self.cursor.text().ok())?
    }

    /// The elements of an array.
    pub fn list(mut self) -> Option<impl ExactSizeIterator<Item = Value<'a>>> {
        if self.kind != Kind::Array {
            return None;
        }
        let kind = Kind::read(&mut self.cursor).ok()?;
        // The array has been stepped over once, so it is no longer than the file.
        let length = usize::try_from(self.cursor.u64().ok()?).ok()?;
        let mut cursor = self.cursor;
        Some((0..length).map(move |_| {
            let value = Value {
                kind,
                cursor: cursor.clone(),
            };
            let _ = cursor.skip(kind, 1);
            value
        }))
    }

    fn bits(&mut self, width: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        let taken = self.cursor.take(width).ok()?;
        bytes[..taken.len()].copy_from_slice(taken);
        Some(u64::from_le_bytes(bytes))
    }

    /// For messages: a short form of the value.
    pub fn describe(self) -> String {
        match self.kind {
            Kind::Unsigned(width) | Kind::Signed(width) => {
                let mut value = self;
                let bits = value.bits(width).unwrap_or(0);
                let unused = 64 - width * 8;
                match value.kind {
                    Kind::Signed(_) => (((bits << unused) as i64) >> unused).to_string(),
                    _ => bits.to_string(),
                }
            }
            Kind::Float(_) => self.float().unwrap_or(f64::NAN).to_string(),
            Kind::Bool => "a truth value".to_string(),
            Kind::Text => match self.text() {
                Some(text) => format!("{:?}", text.chars().take(40).collect::<String>()),
                None => "a string that is not UTF-8".to_string(),
            },
            Kind::Array => format!(
                "an array of {}",
                self.list().map_or(0, |elements| elements.len())
            ),
        }
    }
}
