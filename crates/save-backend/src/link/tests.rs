//! Vectors from `docs/formats/link.md`, and properties.

use data_encoding::HEXLOWER;
use proptest::prelude::*;
use veilid_core::{BarePublicKey, BareSecretKey, CRYPTO_KIND_VLD0, KeyPair, PublicKey, SecretKey};
use zeroize::Zeroizing;

use super::*;

const SPECIFICATION: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../docs/formats/link.md"
));

fn public(bytes: [u8; 32]) -> PublicKey {
    PublicKey::new(CRYPTO_KIND_VLD0, BarePublicKey::new(&bytes))
}

fn secret(bytes: [u8; 32]) -> SecretKey {
    SecretKey::new(CRYPTO_KIND_VLD0, BareSecretKey::new(&bytes))
}

fn build(kind: LinkKind, key: [u8; 32], a: [u8; 32], b: [u8; 32], c: [u8; 32]) -> Link {
    let key = public(key);
    match kind {
        LinkKind::Member => Link::member(&key, &secret(a)),
        LinkKind::Reader => Link::reader(&key, &a),
        LinkKind::Replica => Link::replica(&key, &a),
        LinkKind::Device => {
            let repo = KeyPair::new_from_parts(public(b), BareSecretKey::new(&c));
            Link::device(&key, &secret(a), &repo)
        }
        LinkKind::Server => Link::server(&key, &a),
    }
    .unwrap()
}

/// The lines of the specification's code block of this name.
fn block(name: &str) -> Vec<&'static str> {
    let start = format!("```{name}\n");
    let (_, rest) = SPECIFICATION.split_once(start.as_str()).unwrap();
    let (block, _) = rest.split_once("\n```").unwrap();
    block.lines().filter(|line| !line.is_empty()).collect()
}

fn name(error: &LinkError) -> String {
    match error {
        LinkError::NotALink => "not-a-link".into(),
        LinkError::Newer { version } => format!("newer({version})"),
        LinkError::UnknownKind { kind } => format!("unknown-kind({kind})"),
        LinkError::CutShort { part } => format!("cut-short({part:?})").to_lowercase(),
        LinkError::TooLong { .. } => "too-long".into(),
        LinkError::BadVersion => "bad-version".into(),
        LinkError::WrongCharacter { part, position } => {
            format!("wrong-character({part:?},{position})").to_lowercase()
        }
        LinkError::WrongLength { part } => format!("wrong-length({part:?})").to_lowercase(),
        LinkError::WrongChecksum { part } => format!("wrong-checksum({part:?})").to_lowercase(),
        LinkError::MissingSeparator { position } => format!("missing-separator({position})"),
        LinkError::TrailingJunk { position } => format!("trailing-junk({position})"),
        LinkError::MissingFields { part } => format!("missing-fields({part:?})").to_lowercase(),
        LinkError::BrokenExtension { part } => format!("broken-extension({part:?})").to_lowercase(),
        LinkError::Keys { .. } => "keys".into(),
        LinkError::UnknownCrypto => "unknown-crypto".into(),
        LinkError::Repeated { extension } => format!("repeated({extension})"),
        LinkError::ExpiryLength { bytes } => format!("expiry-length({bytes})"),
        LinkError::Label { problem } => match problem {
            LabelProblem::Empty => "label(empty)".into(),
            LabelProblem::TooLong { bytes } => format!("label(too-long({bytes}))"),
            LabelProblem::NotUtf8 => "label(not-utf8)".into(),
            LabelProblem::Control => "label(control)".into(),
            LabelProblem::Untrimmed => "label(untrimmed)".into(),
        },
        LinkError::NoRoom { .. } => "no-room".into(),
        LinkError::Expired { at } => format!("expired({at})"),
        LinkError::KeyMismatch => "key-mismatch".into(),
        LinkError::WrongKind { .. } => "wrong-kind".into(),
    }
}

/// A link from the first three fields of a vector.
fn from_vector(kind: &str, key: &str, secrets: &str) -> Link {
    let kind = LinkKind::from_word(kind).unwrap();
    let key: [u8; 32] = HEXLOWER.decode(key.as_bytes()).unwrap().try_into().unwrap();
    let mut secrets = HEXLOWER.decode(secrets.as_bytes()).unwrap();
    secrets.resize(96, 0);
    let part = |i: usize| <[u8; 32]>::try_from(&secrets[i * 32..][..32]).unwrap();
    build(kind, key, part(0), part(1), part(2))
}

#[test]
fn valid_vectors() {
    let lines = block("valid");
    assert_eq!(lines.len(), LinkKind::ALL.len());
    for line in lines {
        let [kind, key, secrets, text] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("four fields: {line}");
        };
        let link = from_vector(kind, key, secrets);
        assert_eq!(*link.expose(), text);
        assert_eq!(Link::parse(text).unwrap(), link);
        assert_eq!((link.expires_at(), link.label()), (None, None));
    }
}

#[test]
fn vectors_with_extensions() {
    let lines = block("extended");
    assert!(lines.len() >= 5);
    for line in lines {
        let [kind, key, secrets, expiry, label, text] = line.split(' ').collect::<Vec<_>>()[..]
        else {
            panic!("six fields: {line}");
        };
        let expiry: Option<u64> = (expiry != "-").then(|| expiry.parse().unwrap());
        let label = (label != "-").then(|| {
            let label = HEXLOWER.decode(label.as_bytes()).unwrap();
            String::from_utf8(label).unwrap()
        });
        // In this order, which is not the one in which they are written.
        let mut link = from_vector(kind, key, secrets);
        if let Some(label) = &label {
            link = link.with_label(label).unwrap();
        }
        if let Some(at) = expiry {
            link = link.with_expiry(at).unwrap();
        }
        assert_eq!(*link.expose(), text);
        let parsed = Link::parse(text).unwrap();
        assert_eq!(parsed, link);
        assert_eq!(parsed.expires_at(), expiry);
        assert_eq!(parsed.label(), label.as_deref());
    }
}

#[test]
fn other_spellings() {
    let first = block("valid")[0].split(' ').next_back().unwrap();
    let link = Link::parse(first).unwrap();
    let lines = block("same");
    assert!(lines.len() >= 3);
    for line in lines {
        assert_eq!(Link::parse(line).unwrap(), link, "{line}");
    }
    assert_eq!(Link::parse(&format!(" \r\n\t{first}\n\n")).unwrap(), link);
}

#[test]
fn invalid_vectors() {
    let lines = block("invalid");
    assert!(lines.len() >= 40);
    for line in lines {
        let (wanted, text) = line.split_once(' ').unwrap_or((line, ""));
        assert_eq!(name(&Link::parse(text).unwrap_err()), wanted, "{line}");
    }
}

#[test]
fn debug_shows_no_key() {
    let link = build(LinkKind::Device, [1; 32], [2; 32], [3; 32], [4; 32]);
    let link = link.with_label("Ben").unwrap();
    let shown = format!("{link:?} {:?}", link.access());
    assert_eq!(
        shown,
        r#"Link { kind: Device, secret: "[redacted]", .. } Device([redacted])"#
    );
}

#[test]
fn an_expired_link_is_refused_from_that_second_on() {
    let link = build(LinkKind::Member, [1; 32], [2; 32], [0; 32], [0; 32]);
    assert_eq!(link.check_expiry(u64::MAX), Ok(()));
    let link = link.with_expiry(1_772_366_400).unwrap();
    // Parsing has no clock.
    let link = Link::parse(&link.expose()).unwrap();
    assert_eq!(link.check_expiry(1_772_366_399), Ok(()));
    let expired = LinkError::Expired { at: 1_772_366_400 };
    for now in [1_772_366_400, 1_772_366_401, u64::MAX] {
        assert_eq!(link.check_expiry(now), Err(expired.clone()));
    }
    assert_eq!(
        expired.to_string(),
        "this link has expired: it was good until 2026-03-01 12:00 UTC"
    );
}

#[test]
fn expiry_and_label_take_the_place_of_earlier_ones() {
    let plain = build(LinkKind::Reader, [1; 32], [2; 32], [0; 32], [0; 32]);
    let link = plain.clone().with_label("old").unwrap();
    let link = link.with_expiry(7).unwrap().with_label("new").unwrap();
    let link = link.with_expiry(8).unwrap();
    assert_eq!((link.expires_at(), link.label()), (Some(8), Some("new")));
    let other = plain.clone().with_expiry(8).unwrap();
    assert_eq!(link, other.with_label(" new\n").unwrap());
    assert_ne!(link, plain);
    // Unknown ones stay where they are.
    let mut newer = plain;
    newer.public.extend_from_slice(&[0, 1, 5, 9, 0]);
    let newer = newer.with_expiry(1).unwrap();
    assert_eq!(
        newer.public[36..],
        [0, 1, 5, 1, 8, 0, 0, 0, 0, 0, 0, 0, 1, 9, 0]
    );
}

#[test]
fn what_is_no_label_is_refused() {
    let link = || build(LinkKind::Reader, [1; 32], [2; 32], [0; 32], [0; 32]);
    let problem = |label: &str| match link().with_label(label) {
        Err(LinkError::Label { problem }) => problem,
        other => panic!("{label:?} gives {other:?}"),
    };
    assert_eq!(problem(""), LabelProblem::Empty);
    assert_eq!(problem(" \u{a0}\t"), LabelProblem::Empty);
    assert_eq!(
        problem(&"é".repeat(33)),
        LabelProblem::TooLong { bytes: 66 }
    );
    assert_eq!(problem("a\u{1b}[2J"), LabelProblem::Control);
    for good in ["é".repeat(32), "a".repeat(64), " a b ".into()] {
        let link = link().with_label(&good).unwrap();
        assert_eq!(link.label(), Some(good.trim()));
    }
}

#[test]
fn a_link_that_is_full_takes_no_more() {
    let mut link = build(LinkKind::Member, [1; 32], [2; 32], [0; 32], [0; 32]);
    while link.public.len() + 257 <= MAX_PAYLOAD {
        link.public.extend_from_slice(&[7, 255]);
        link.public.extend_from_slice(&[0; 255]);
    }
    // 3,891 bytes by now; room for a label of 64 bytes with its head is left, and for an expiry less one byte.
    let rest = MAX_PAYLOAD - link.public.len() - 66 - 9 - 2;
    link.public.extend_from_slice(&[7, rest as u8]);
    link.public.resize(MAX_PAYLOAD - 66 - 9, 0);
    let link = Link::parse(&link.expose()).unwrap();
    let link = link.with_label(&"a".repeat(64)).unwrap();
    assert_eq!(Link::parse(&link.expose()).unwrap(), link);
    assert_eq!(
        link.with_expiry(1).unwrap_err(),
        LinkError::NoRoom {
            extension: LinkExtension::Expiry
        }
    );
}

#[test]
fn access_gives_the_keys_back() {
    let link = build(LinkKind::Device, [1; 32], [2; 32], [3; 32], [4; 32]);
    let LinkAccess::Device {
        group,
        owner,
        repo,
        repo_secret,
    } = link.access()
    else {
        panic!("a device link gives device access");
    };
    assert_eq!((group, repo), (public([1; 32]), public([3; 32])));
    assert_eq!((*owner, *repo_secret), ([2; 32], [4; 32]));
    assert_eq!(link.owner().unwrap().secret(), secret([2; 32]));
    assert!(
        build(LinkKind::Reader, [1; 32], [2; 32], [0; 32], [0; 32])
            .owner()
            .is_none()
    );
}

#[test]
fn verify_asks_for_each_pair() {
    let link = build(LinkKind::Device, [1; 32], [2; 32], [3; 32], [4; 32]);
    assert_eq!(link.verify(|_| true), Ok(()));
    assert_eq!(
        link.verify(|pair| pair.key() == public([1; 32])),
        Err(LinkError::KeyMismatch)
    );
}

#[test]
fn the_qr_form_fits_the_alphanumeric_alphabet() {
    for kind in LinkKind::ALL {
        let text = build(kind, [1; 32], [2; 32], [3; 32], [4; 32]).expose_qr();
        let fits =
            |c: char| c.is_ascii_digit() || c.is_ascii_uppercase() || " $%*+-./:".contains(c);
        assert!(text.chars().all(fits));
        // 154 characters are a version 6 code with error correction M.
        assert!(kind == LinkKind::Device || text.len() <= 154);
    }
}

#[test]
fn unknown_extensions_are_kept_and_broken_ones_refused() {
    let with = |extension: &[u8]| {
        let mut link = build(LinkKind::Member, [1; 32], [2; 32], [0; 32], [0; 32]);
        link.public.extend_from_slice(extension);
        link.secret.extend_from_slice(extension);
        link
    };
    for good in [&[7, 0][..], &[7, 2, 1, 2], &[7, 1, 1, 9, 0], &[9; 2 + 9]] {
        let link = with(good);
        let again = Link::parse(&link.expose()).unwrap();
        assert_eq!(again, link);
        assert_eq!(again.owner(), link.owner());
    }
    for bad in [&[7][..], &[7, 1], &[7, 3, 1, 2]] {
        assert_eq!(
            Link::parse(&with(bad).expose()).unwrap_err(),
            LinkError::BrokenExtension {
                part: LinkPart::Public
            }
        );
    }
    // A length of two bytes.
    let long = [[3, 255].as_slice(), &[0; 255]].concat();
    assert_eq!(Link::parse(&with(&long).expose()).unwrap(), with(&long));
}

#[test]
fn what_is_longer_than_any_link_is_called_so() {
    let text = build(LinkKind::Member, [1; 32], [2; 32], [0; 32], [0; 32]).expose();
    let long = format!("{}{}", *text, "a".repeat(16 * 1024 - text.len()));
    let position = text.len() + 1;
    assert_eq!(
        Link::parse(&long).unwrap_err(),
        LinkError::TrailingJunk { position }
    );
    assert_eq!(
        Link::parse(&format!("{long}a")).unwrap_err(),
        LinkError::TooLong {
            bytes: 16 * 1024 + 1,
            limit: 16 * 1024
        }
    );
    // Something else altogether is not called a long link.
    assert_eq!(
        Link::parse(&"a".repeat(20_000)).unwrap_err(),
        LinkError::NotALink
    );
}

#[test]
fn keys_of_other_lengths_are_refused() {
    let key = public([1; 32]);
    let short = SecretKey::new(CRYPTO_KIND_VLD0, BareSecretKey::new(&[1; 31]));
    assert_eq!(
        Link::member(&key, &short).unwrap_err(),
        LinkError::Keys {
            part: LinkPart::Secret
        }
    );
    let other = PublicKey::new(CryptoKind::new(*b"VLD9"), BarePublicKey::new(&[1; 32]));
    assert_eq!(
        Link::reader(&other, &[2; 32]).unwrap_err(),
        LinkError::UnknownCrypto
    );
}

/// Extensions that this version does not know, in the secret part of any type.
fn unknown(from: u8) -> impl Strategy<Value = Vec<u8>> {
    let extension = (from..=u8::MAX, prop::collection::vec(any::<u8>(), 0..80));
    prop::collection::vec(extension, 0..3).prop_map(|extensions| {
        extensions
            .into_iter()
            .flat_map(|(number, value)| [vec![number, value.len() as u8], value].concat())
            .collect()
    })
}

fn labels() -> impl Strategy<Value = String> {
    "\\PC{1,16}"
        .prop_map(|text| text.trim().to_owned())
        .prop_filter("nothing is left", |text| !text.is_empty())
}

fn links() -> impl Strategy<Value = Link> {
    (
        prop::sample::select(LinkKind::ALL.to_vec()),
        any::<[[u8; 32]; 4]>(),
        (unknown(3), unknown(0)),
        prop::option::of(any::<u64>()),
        prop::option::of(labels()),
    )
        .prop_map(|(kind, [key, a, b, c], (public, secret), expiry, label)| {
            let mut link = build(kind, key, a, b, c);
            link.public.extend_from_slice(&public);
            link.secret = Zeroizing::new([&link.secret[..], &secret].concat());
            if let Some(at) = expiry {
                link = link.with_expiry(at).unwrap();
            }
            if let Some(label) = label {
                link = link.with_label(&label).unwrap();
            }
            link
        })
}

/// A link and one of its two forms.
fn texts() -> impl Strategy<Value = String> {
    (links(), any::<bool>()).prop_map(|(link, qr)| {
        if qr {
            link.expose_qr().to_string()
        } else {
            link.expose().to_string()
        }
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(link in links()) {
        for text in [link.expose(), link.expose_qr()] {
            let parsed = Link::parse(&text).unwrap();
            prop_assert_eq!(&parsed, &link);
            prop_assert_eq!(parsed.expires_at(), link.expires_at());
            prop_assert_eq!(parsed.label(), link.label());
            prop_assert_eq!(parsed.expose(), link.expose());
        }
    }

    #[test]
    fn one_wrong_character_is_found(text in texts(), at in any::<prop::sample::Index>(), typed in "[a-zA-Z0-9#$/: .-]|\\PC|\\pC") {
        let at = at.index(text.len());
        let wrong = format!("{}{typed}{}", &text[..at], &text[at + 1..]);
        // Case and the separator's two forms carry no meaning; everything else has to be found.
        let same = |c: &str| c.to_ascii_lowercase().replace('$', "#");
        prop_assume!(same(&wrong) != same(&text));
        prop_assert!(Link::parse(&wrong).is_err(), "{}", wrong);
    }

    /// What is wrong with one character of a part is told from everything else, and where it can be known, its place is right.
    #[test]
    fn each_mistake_has_its_own_error(
        link in links(),
        secret in any::<bool>(),
        at in any::<prop::sample::Index>(),
        other in 1_u8..32,
        strange in prop::sample::select(vec!['0', '1', '8', '9', '-', ' ', '/', '.', 'é', '😀']),
    ) {
        let text = link.expose().to_string();
        let separator = text.find('#').unwrap();
        let (part, start, end) = match secret {
            true => (LinkPart::Secret, separator + 1, text.len()),
            false => (LinkPart::Public, text[..separator].rfind('/').unwrap() + 1, separator),
        };
        let changed = |at: usize, to: &str| format!("{}{to}{}", &text[..at], &text[at + 1..]);
        // White space at the end of a link is none of it.
        let anywhere = start + at.index(end - start);
        if anywhere + 1 < text.len() {
            prop_assert_eq!(
                Link::parse(&changed(anywhere, &strange.to_string())),
                Err(LinkError::WrongCharacter { part, position: anywhere + 1 })
            );
        }
        // Behind the characters that tell the length, and before the one with unused bits.
        let within = start + 4 + at.index(end - start - 5);
        let alphabet = b"abcdefghijklmnopqrstuvwxyz234567";
        let here = alphabet.iter().position(|c| *c == text.as_bytes()[within]).unwrap();
        let other = char::from(alphabet[(here + usize::from(other)) % 32]).to_string();
        prop_assert_eq!(
            Link::parse(&changed(within, &other)),
            Err(LinkError::WrongChecksum { part })
        );
        let longer = format!("{}{other}{}", &text[..within], &text[within..]);
        prop_assert_eq!(Link::parse(&longer), Err(LinkError::WrongLength { part }));
        if !secret {
            prop_assert_eq!(
                Link::parse(&changed(within, "")),
                Err(LinkError::WrongLength { part })
            );
            prop_assert_eq!(
                Link::parse(&changed(separator, &other)),
                Err(LinkError::MissingSeparator { position: separator + 1 })
            );
        }
    }

    #[test]
    fn a_swap_a_gap_and_an_addition_are_found(text in texts(), at in any::<prop::sample::Index>(), typed in "[a-z2-7]") {
        let at = at.index(text.len() - 1);
        let (a, b) = (&text[at..=at], &text[at + 1..at + 2]);
        if a != b {
            let swapped = format!("{}{b}{a}{}", &text[..at], &text[at + 2..]);
            prop_assert!(Link::parse(&swapped).is_err());
        }
        let gap = format!("{}{}", &text[..at], &text[at + 1..]);
        prop_assert!(Link::parse(&gap).is_err());
        let added = format!("{}{typed}{}", &text[..at], &text[at..]);
        prop_assert!(Link::parse(&added).is_err());
    }

    #[test]
    fn every_truncation_is_found(text in texts(), at in any::<prop::sample::Index>()) {
        let short = &text[..at.index(text.len())];
        let error = Link::parse(short).unwrap_err();
        let scheme = "save+dweb:".len();
        if short.len() < scheme {
            prop_assert_eq!(error, LinkError::NotALink);
        } else {
            let cut = matches!(error, LinkError::CutShort { .. });
            // Cut just where the rest has the length of a part without extensions, a wrong length is as likely.
            let doubtful = matches!(error, LinkError::WrongLength { .. });
            prop_assert!(cut || doubtful, "{:?}", error);
        }
    }

    #[test]
    fn what_follows_is_found(text in texts(), junk in "\\PC{1,40}") {
        prop_assume!(!junk.trim().is_empty());
        let position = text.len() + 1;
        prop_assert_eq!(
            Link::parse(&format!("{text}{junk}")).unwrap_err(),
            LinkError::TrailingJunk { position }
        );
    }

    #[test]
    fn any_text_is_answered(text in ".{0,200}", head in "(save\\+dweb:1/((member|device)/)?)?") {
        let text = format!("{head}{text}");
        prop_assert!(Link::parse(&text).is_err());
    }

    /// With sound checksums, so that it reaches what comes behind them.
    #[test]
    fn any_payload_is_answered(
        kind in prop::sample::select(LinkKind::ALL.to_vec()),
        fields in prop::option::of(prop::collection::vec((0_u8..4, prop::collection::vec(any::<u8>(), 0..12)), 0..5)),
        junk in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let mut link = build(kind, [1; 32], [2; 32], [3; 32], [4; 32]);
        match fields {
            Some(fields) => for (number, value) in fields {
                link.public.extend_from_slice(&[number, value.len() as u8]);
                link.public.extend_from_slice(&value);
            },
            None => link.public = junk,
        }
        if let Ok(parsed) = Link::parse(&link.expose()) {
            prop_assert_eq!(&parsed, &link);
            prop_assert_eq!(parsed.check_expiry(0).is_err(), parsed.expires_at() == Some(0));
            prop_assert!(parsed.label().is_none_or(|label| check_label(label) == Ok(label)));
        }
    }
}

#[test]
fn a_member_link_cut_anywhere_is_called_cut_short() {
    let text = build(LinkKind::Member, [1; 32], [2; 32], [0; 32], [0; 32]).expose();
    for end in "save+dweb:".len()..text.len() {
        let error = Link::parse(&text[..end]).unwrap_err();
        assert!(matches!(error, LinkError::CutShort { .. }), "{error:?}");
    }
}
