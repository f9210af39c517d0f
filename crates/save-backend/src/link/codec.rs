//! The text form of a link: splitting, base32, lengths and checksums.

use data_encoding::{BASE32_NOPAD, BASE32_NOPAD_NOCASE};
use zeroize::Zeroizing;

use super::{LINK_VERSION, Link, LinkError, LinkKind, LinkPart, MAX_PAYLOAD, extension};

const SCHEME: &str = "save+dweb:";
/// Longer than any link of this version: two payloads of the largest size in base32, and what stands around them.
const MAX_TEXT: usize = 16 * 1024;
const CHECKSUM_BYTES: usize = 5;
/// So many characters tell a part's length, whether it takes one byte or two.
const LENGTH_CHARS: usize = 4;
/// The first of these characters ends the public part; `$` stands for `#` in the QR form.
const SEPARATORS: [char; 2] = ['#', '$'];
const PUBLIC_CONTEXT: &str = "save-dweb link v1 checksum of the public part";
const SECRET_CONTEXT: &str = "save-dweb link v1 checksum of the whole link";

/// Writes the canonical, lower-case form.
pub(super) fn encode(link: &Link) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(256));
    text.push_str(SCHEME);
    text.push_str(&LINK_VERSION.to_string());
    text.push('/');
    text.push_str(link.kind.as_str());
    text.push('/');
    let checksum = public_checksum(link.kind, &link.public);
    append_part(&mut text, &link.public, checksum);
    text.push('#');
    let checksum = secret_checksum(link.kind, &link.public, &link.secret);
    append_part(&mut text, &link.secret, checksum);
    text
}

fn append_part(text: &mut Zeroizing<String>, payload: &[u8], checksum: [u8; CHECKSUM_BYTES]) {
    let mut bytes = Zeroizing::new(Vec::with_capacity(2 + payload.len() + CHECKSUM_BYTES));
    append_length(&mut bytes, payload.len());
    bytes.extend_from_slice(payload);
    bytes.extend_from_slice(&checksum);
    let mut encoded = Zeroizing::new(BASE32_NOPAD.encode(&bytes));
    encoded.make_ascii_lowercase();
    text.push_str(&encoded);
}

/// Reads either form.
pub(super) fn parse(text: &str) -> Result<Link, LinkError> {
    let text = text.trim();
    let head = text.get(..SCHEME.len()).ok_or(LinkError::NotALink)?;
    if !head.eq_ignore_ascii_case(SCHEME) {
        return Err(LinkError::NotALink);
    }
    if text.len() > MAX_TEXT {
        return Err(LinkError::TooLong {
            bytes: text.len(),
            limit: MAX_TEXT,
        });
    }
    let rest = text.get(SCHEME.len()..).unwrap_or_default();
    let (version, rest) = segment(rest, LinkPart::Version)?;
    check_version(version)?;
    let (word, body) = segment(rest, LinkPart::Kind)?;
    let kind = LinkKind::from_word(word).ok_or_else(|| LinkError::UnknownKind {
        kind: word
            .chars()
            .take(16)
            .map(|c| if c.is_ascii_graphic() { c } else { '?' })
            .collect(),
    })?;

    let offset = text.chars().count() - body.chars().count();
    let (public_text, secret_text) = match body.find(SEPARATORS) {
        // Both separators are one byte long.
        Some(at) => (
            body.get(..at).unwrap_or_default(),
            Some(body.get(at + 1..).unwrap_or_default()),
        ),
        None => (body, None),
    };
    let public = PartReader {
        part: LinkPart::Public,
        text: public_text,
        offset,
        usual: kind.public_fields(),
        last: secret_text.is_none(),
    }
    .read(|payload| public_checksum(kind, payload))?;
    let secret_text = secret_text.ok_or(LinkError::CutShort {
        part: LinkPart::Secret,
    })?;
    let secret = PartReader {
        part: LinkPart::Secret,
        text: secret_text,
        offset: offset + public_text.chars().count() + 1,
        usual: kind.secret_fields(),
        last: true,
    }
    .read(|payload| secret_checksum(kind, &public, payload))?;
    extension::behind(&public, kind.public_fields(), LinkPart::Public)?;
    extension::behind(&secret, kind.secret_fields(), LinkPart::Secret)?;
    Link::from_payloads(kind, public.to_vec(), secret)
}

fn segment(text: &str, part: LinkPart) -> Result<(&str, &str), LinkError> {
    text.split_once('/').ok_or(LinkError::CutShort { part })
}

fn check_version(text: &str) -> Result<(), LinkError> {
    let plain = !text.is_empty()
        && text.len() <= 9
        && !text.starts_with('0')
        && text.bytes().all(|b| b.is_ascii_digit());
    if !plain {
        return Err(LinkError::BadVersion);
    }
    match text.parse() {
        Ok(LINK_VERSION) => Ok(()),
        Ok(version) => Err(LinkError::Newer { version }),
        Err(_) => Err(LinkError::BadVersion),
    }
}

struct PartReader<'a> {
    part: LinkPart,
    text: &'a str,
    /// Characters of the link before this part.
    offset: usize,
    /// The payload's length when it has no extension.
    usual: usize,
    /// Nothing follows this part in the text.
    last: bool,
}

impl PartReader<'_> {
    /// Decodes `length ‖ payload ‖ checksum` and says as exactly as it can what is wrong with it.
    fn read(
        &self,
        checksum: impl Fn(&[u8]) -> [u8; CHECKSUM_BYTES],
    ) -> Result<Zeroizing<Vec<u8>>, LinkError> {
        let count = self.text.chars().count();
        let Some((length, prefix)) = declared_length(self.text) else {
            return Err(self.too_short(count < LENGTH_CHARS));
        };
        let wanted = encoded_length(prefix + length + CHECKSUM_BYTES);
        if count < wanted {
            // If it has the length that such a part usually has, the mistake is in the length itself.
            let usual = encoded_length(1 + self.usual + CHECKSUM_BYTES);
            return Err(self.too_short(count != usual));
        }
        let payload = match self.text.get(..wanted).map(decode) {
            Some(Some(bytes)) => sound(&bytes, prefix, length, checksum),
            // Nothing but its unused bits can be wrong with a text of this alphabet.
            Some(None) if self.wrong_symbol().is_none() && count == wanted => {
                return Err(self.wrong_character(wanted - 1));
            }
            _ => None,
        };
        let Some(payload) = payload else {
            let part = self.part;
            return Err(match self.wrong_symbol() {
                Some(at) => self.wrong_character(at),
                None if count != wanted => LinkError::WrongLength { part },
                None => LinkError::WrongChecksum { part },
            });
        };
        if count == wanted {
            Ok(payload)
        } else {
            Err(self.goes_on(wanted))
        }
    }

    /// A sound part ends after so many characters, and others follow.
    fn goes_on(&self, end: usize) -> LinkError {
        let position = self.offset + end + 1;
        match (self.part, self.last) {
            (LinkPart::Secret, _) => LinkError::TrailingJunk { position },
            (_, true) => LinkError::MissingSeparator { position },
            (part, false) => match self.wrong_symbol() {
                Some(at) => self.wrong_character(at),
                None => LinkError::WrongLength { part },
            },
        }
    }

    fn too_short(&self, may_be_cut: bool) -> LinkError {
        let part = self.part;
        match self.wrong_symbol() {
            Some(at) => self.wrong_character(at),
            None if self.last && may_be_cut => LinkError::CutShort { part },
            None => LinkError::WrongLength { part },
        }
    }

    /// The error for the character that so many others of this part precede.
    fn wrong_character(&self, at: usize) -> LinkError {
        LinkError::WrongCharacter {
            part: self.part,
            position: self.offset + at + 1,
        }
    }

    fn wrong_symbol(&self) -> Option<usize> {
        self.text.chars().position(|c| symbol(c).is_none())
    }
}

/// The payload, if its checksum is right.
fn sound(
    bytes: &[u8],
    prefix: usize,
    length: usize,
    checksum: impl Fn(&[u8]) -> [u8; CHECKSUM_BYTES],
) -> Option<Zeroizing<Vec<u8>>> {
    let payload = bytes.get(prefix..prefix + length)?;
    let sum = bytes.get(prefix + length..)?;
    (sum == checksum(payload).as_slice()).then(|| Zeroizing::new(payload.to_vec()))
}

/// The value of a base32 character (RFC 4648, either case).
fn symbol(c: char) -> Option<u32> {
    match c {
        'a'..='z' => Some(u32::from(c) - u32::from('a')),
        'A'..='Z' => Some(u32::from(c) - u32::from('A')),
        '2'..='7' => Some(u32::from(c) - u32::from('2') + 26),
        _ => None,
    }
}

/// The length at the beginning of a part, and how many bytes it takes itself.
fn declared_length(text: &str) -> Option<(usize, usize)> {
    let mut chars = text.chars();
    let mut bits = 0;
    for _ in 0..LENGTH_CHARS {
        bits = bits << 5 | symbol(chars.next()?)?;
    }
    // Four characters are 20 bits, of which the first 16 are two bytes.
    let (first, second) = ((bits >> 12) & 0xff, (bits >> 4) & 0xff);
    let (length, prefix) = if first < 0x80 {
        (first, 1)
    } else {
        (((first & 0x7f) << 8) | second, 2)
    };
    let length = usize::try_from(length).ok()?;
    // Each length has one form only.
    (length <= MAX_PAYLOAD && (prefix == 1 || length >= 0x80)).then_some((length, prefix))
}

fn append_length(bytes: &mut Vec<u8>, length: usize) {
    debug_assert!(length <= MAX_PAYLOAD);
    let [.., high, low] = length.to_be_bytes();
    if length >= 0x80 {
        bytes.push(0x80 | high);
    }
    bytes.push(low);
}

fn encoded_length(bytes: usize) -> usize {
    BASE32_NOPAD.encode_len(bytes)
}

/// Decodes base32 of either case; unused bits at the end must be zero.
fn decode(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let length = BASE32_NOPAD_NOCASE.decode_len(text.len()).ok()?;
    let mut bytes = Zeroizing::new(vec![0; length]);
    let written = BASE32_NOPAD_NOCASE
        .decode_mut(text.as_bytes(), &mut bytes)
        .ok()?;
    (written == length).then_some(bytes)
}

fn public_checksum(kind: LinkKind, public: &[u8]) -> [u8; CHECKSUM_BYTES] {
    checksum(PUBLIC_CONTEXT, &[kind.as_str().as_bytes(), public])
}

fn secret_checksum(kind: LinkKind, public: &[u8], secret: &[u8]) -> [u8; CHECKSUM_BYTES] {
    checksum(SECRET_CONTEXT, &[kind.as_str().as_bytes(), public, secret])
}

/// Every field goes in with its length, so that no byte can move from one to the next.
fn checksum(context: &str, fields: &[&[u8]]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    for field in fields {
        let length = u64::try_from(field.len()).expect("a slice's length fits into 64 bits");
        hasher.update(&length.to_be_bytes());
        hasher.update(field);
    }
    let mut sum = [0; CHECKSUM_BYTES];
    hasher.finalize_xof().fill(&mut sum);
    sum
}
