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
        LinkError::Mistyped { part, .. } => format!("mistyped({part:?})").to_lowercase(),
        LinkError::TrailingJunk { position } => format!("trailing-junk({position})"),
        LinkError::Payload { part } => format!("payload({part:?})").to_lowercase(),
        LinkError::UnknownCrypto => "unknown-crypto".into(),
        LinkError::KeyMismatch => "key-mismatch".into(),
        LinkError::WrongKind { .. } => "wrong-kind".into(),
    }
}

#[test]
fn valid_vectors() {
    let lines = block("valid");
    assert_eq!(lines.len(), LinkKind::ALL.len());
    for line in lines {
        let [kind, key, secrets, text] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("four fields: {line}");
        };
        let kind = LinkKind::from_word(kind).unwrap();
        let key: [u8; 32] = HEXLOWER.decode(key.as_bytes()).unwrap().try_into().unwrap();
        let mut secrets = HEXLOWER.decode(secrets.as_bytes()).unwrap();
        secrets.resize(96, 0);
        let part = |i: usize| <[u8; 32]>::try_from(&secrets[i * 32..][..32]).unwrap();
        let link = build(kind, key, part(0), part(1), part(2));
        assert_eq!(*link.expose(), text);
        assert_eq!(Link::parse(text).unwrap(), link);
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
    assert!(lines.len() >= 12);
    for line in lines {
        let (wanted, text) = line.split_once(' ').unwrap_or((line, ""));
        assert_eq!(name(&Link::parse(text).unwrap_err()), wanted, "{line}");
    }
}

#[test]
fn debug_shows_no_key() {
    let link = build(LinkKind::Device, [1; 32], [2; 32], [3; 32], [4; 32]);
    let shown = format!("{link:?} {:?}", link.access());
    assert_eq!(
        shown,
        r#"Link { kind: Device, secret: "[redacted]", .. } Device([redacted])"#
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
        // 154 characters are a version 7 code with error correction M.
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
            LinkError::Payload {
                part: LinkPart::Public
            }
        );
    }
    // A length of two bytes.
    let long = [[1, 255].as_slice(), &[0; 255]].concat();
    assert_eq!(Link::parse(&with(&long).expose()).unwrap(), with(&long));
}

#[test]
fn keys_of_other_lengths_are_refused() {
    let key = public([1; 32]);
    let short = SecretKey::new(CRYPTO_KIND_VLD0, BareSecretKey::new(&[1; 31]));
    assert_eq!(
        Link::member(&key, &short).unwrap_err(),
        LinkError::Payload {
            part: LinkPart::Secret
        }
    );
    let other = PublicKey::new(CryptoKind::new(*b"VLD9"), BarePublicKey::new(&[1; 32]));
    assert_eq!(
        Link::reader(&other, &[2; 32]).unwrap_err(),
        LinkError::UnknownCrypto
    );
}

fn links() -> impl Strategy<Value = Link> {
    (
        prop::sample::select(LinkKind::ALL.to_vec()),
        any::<[[u8; 32]; 4]>(),
        prop::collection::vec(
            (any::<u8>(), prop::collection::vec(any::<u8>(), 0..80)),
            0..3,
        ),
    )
        .prop_map(|(kind, [key, a, b, c], extensions)| {
            let mut link = build(kind, key, a, b, c);
            for (number, value) in extensions {
                let field = [&[number, value.len() as u8], &value[..]].concat();
                link.secret = Zeroizing::new([&link.secret[..], &field].concat());
            }
            link
        })
}

proptest! {
    #[test]
    fn what_is_written_is_read(link in links()) {
        prop_assert_eq!(&Link::parse(&link.expose()).unwrap(), &link);
        prop_assert_eq!(&Link::parse(&link.expose_qr()).unwrap(), &link);
    }

    #[test]
    fn one_wrong_character_is_found(link in links(), at in any::<prop::sample::Index>(), typed in "[a-zA-Z0-9#$/: .-]") {
        let text = link.expose();
        let at = at.index(text.len());
        let wrong = format!("{}{typed}{}", &text[..at], &text[at + 1..]);
        // Case and the separator's two forms carry no meaning; everything else has to be found.
        let same = |c: &str| c.to_lowercase().replace('$', "#");
        prop_assume!(same(&wrong) != same(&text));
        if !(at + 1 == text.len() && typed == " ") {
            prop_assert!(Link::parse(&wrong).is_err(), "{}", wrong);
        }
    }

    #[test]
    fn a_swap_a_gap_and_an_addition_are_found(link in links(), at in any::<prop::sample::Index>(), typed in "[a-z2-7]") {
        let text = link.expose();
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
    fn every_truncation_is_found(link in links(), at in any::<prop::sample::Index>()) {
        let text = link.expose();
        let short = &text[..at.index(text.len())];
        let error = Link::parse(short).unwrap_err();
        let scheme = "save+dweb:".len();
        if short.len() < scheme {
            prop_assert_eq!(error, LinkError::NotALink);
        } else {
            let cut = matches!(error, LinkError::CutShort { .. });
            // Cut just where the rest has the length of a part without extensions, a wrong length is as likely.
            let doubtful = matches!(error, LinkError::Mistyped { .. });
            prop_assert!(cut || doubtful, "{:?}", error);
        }
    }

    #[test]
    fn any_text_is_answered(text in ".{0,200}", head in "(save\\+dweb:1/(member|device)/)?") {
        let text = format!("{head}{text}");
        prop_assert!(Link::parse(&text).is_err());
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
