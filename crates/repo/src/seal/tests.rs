//! Tests of sealed files: what is accepted, and all that is not.

use proptest::prelude::*;
use tokio::io::AsyncRead;

use super::*;
use crate::{Error, testing::FailingReader};

fn keys(seed: u8) -> FileKeys {
    FileKeys::new(&ContentKey::from_bytes([seed; 32]))
}

fn data(len: usize) -> Vec<u8> {
    (0..len)
        .map(|index| (index * 7 + index / 251) as u8)
        .collect()
}

async fn seal(plain: &[u8], salt: u8) -> Vec<u8> {
    let mut stream = SealStream::with_salt(&keys(1), [salt; 32], plain);
    let mut sealed = Vec::new();
    while let Some(piece) = stream.next().await.unwrap() {
        assert!(piece.len() <= 2 * SEALED_SEGMENT);
        sealed.extend_from_slice(&piece);
    }
    assert_eq!(stream.size(), plain.len() as u64);
    assert_eq!(stream.plain_hash(), *blake3::hash(plain).as_bytes());
    sealed
}

async fn unseal_from(keys: &FileKeys, source: impl AsyncRead + Unpin) -> Result<Vec<u8>, Error> {
    let mut stream = UnsealStream::new(keys, source);
    let mut plain = Vec::new();
    loop {
        match stream.next().await {
            Ok(Some(piece)) => plain.extend_from_slice(&piece),
            Ok(None) => {
                assert!(stream.next().await.unwrap().is_none());
                return Ok(plain);
            }
            Err(error) => {
                assert!(
                    stream.next().await.is_err(),
                    "a failed stream must not look complete"
                );
                return Err(error);
            }
        }
    }
}

async fn unseal(sealed: &[u8]) -> Result<Vec<u8>, SealError> {
    match unseal_from(&keys(1), sealed).await {
        Ok(plain) => Ok(plain),
        Err(Error::Seal(error)) => Err(error),
        Err(error) => panic!("{error}"),
    }
}

/// Opens each segment by itself, as a reader that jumps about does.
fn unseal_at_random(sealed: &[u8]) -> Result<Vec<u8>, SealError> {
    let layout = Layout::of_sealed(sealed.len() as u64)?;
    let cipher = keys(1).open(&Header::parse(&sealed[..HEADER])?)?;
    let mut plain = vec![0; layout.plain_len() as usize];
    for index in (0..layout.segments()).rev() {
        let range = layout.sealed_range(index..index + 1);
        let mut segment = sealed[range.start as usize..range.end as usize].to_vec();
        cipher.open(index, index + 1 == layout.segments(), &mut segment)?;
        plain[index as usize * SEGMENT..][..segment.len()].copy_from_slice(&segment);
    }
    Ok(plain)
}

#[tokio::test]
async fn every_length_comes_back() {
    for len in [
        0,
        1,
        15,
        16,
        17,
        SEGMENT - 1,
        SEGMENT,
        SEGMENT + 1,
        2 * SEGMENT - 1,
        2 * SEGMENT,
        5 * SEGMENT,
        5 * SEGMENT + 123,
    ] {
        let plain = data(len);
        let sealed = seal(&plain, 9).await;
        assert_eq!(unseal(&sealed).await.unwrap(), plain, "{len}");
        assert_eq!(unseal_at_random(&sealed).unwrap(), plain, "{len}");
        let layout = Layout::of_plain(len as u64).unwrap();
        assert_eq!(layout.sealed_len(), sealed.len() as u64);
        assert_eq!(Layout::of_sealed(sealed.len() as u64), Ok(layout));
        assert_eq!(layout.segments(), (len.max(1)).div_ceil(SEGMENT) as u64);
    }
}

#[tokio::test]
async fn the_way_in_which_bytes_arrive_does_not_matter() {
    let plain = data(3 * SEGMENT + 5);
    let sealed = seal(&plain, 9).await;
    for step in [1, 100, 65_000] {
        let pieces = in_pieces(&sealed, step);
        assert_eq!(unseal_from(&keys(1), pieces).await.unwrap(), plain);
    }
    let mut stream = SealStream::with_salt(&keys(1), [9; 32], in_pieces(&plain, 1001));
    let mut again = Vec::new();
    while let Some(piece) = stream.next().await.unwrap() {
        again.extend_from_slice(&piece);
    }
    assert!(again == sealed);
}

/// A reader that gives a few bytes at a time.
fn in_pieces(bytes: &[u8], step: usize) -> impl AsyncRead + Unpin {
    struct Chunks<'a>(&'a [u8], usize);
    impl AsyncRead for Chunks<'_> {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            buf: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            let (now, rest) = self
                .0
                .split_at(self.1.min(self.0.len()).min(buf.remaining()));
            buf.put_slice(now);
            self.0 = rest;
            std::task::Poll::Ready(Ok(()))
        }
    }
    Chunks(bytes, step)
}

#[tokio::test]
async fn a_file_that_was_cut_off_is_refused_everywhere() {
    let sealed = seal(&data(2 * SEGMENT + 10), 9).await;
    let boundary = HEADER + SEALED_SEGMENT;
    assert_eq!(unseal(&[]).await, Err(SealError::NotSealed));
    assert_eq!(
        unseal(&sealed[..HEADER - 1]).await,
        Err(SealError::NotSealed)
    );
    assert_eq!(
        unseal(&sealed[..HEADER]).await,
        Err(SealError::Length { len: 0 })
    );
    assert_eq!(
        unseal(&sealed[..HEADER + 15]).await,
        Err(SealError::Length { len: 15 })
    );
    assert_eq!(
        unseal(&sealed[..HEADER + 16]).await,
        Err(SealError::Damaged { segment: 0 })
    );
    assert_eq!(
        unseal(&sealed[..boundary - 1]).await,
        Err(SealError::Damaged { segment: 0 })
    );
    assert_eq!(
        unseal(&sealed[..boundary]).await,
        Err(SealError::Truncated { segment: 0 })
    );
    assert_eq!(
        unseal(&sealed[..boundary + 16]).await,
        Err(SealError::Length {
            len: SEALED_SEGMENT as u64 + 16
        })
    );
    assert_eq!(
        unseal(&sealed[..boundary + 17]).await,
        Err(SealError::Damaged { segment: 1 })
    );
    assert_eq!(
        unseal(&sealed[..boundary + SEALED_SEGMENT]).await,
        Err(SealError::Truncated { segment: 1 })
    );
    assert_eq!(
        unseal(&sealed[..sealed.len() - 1]).await,
        Err(SealError::Damaged { segment: 2 })
    );
    for end in (0..sealed.len()).step_by(97) {
        assert!(unseal(&sealed[..end]).await.is_err());
        assert!(unseal_at_random(&sealed[..end]).is_err());
    }
}

#[tokio::test]
async fn appended_moved_and_swapped_segments_are_refused() {
    let one = seal(&data(3 * SEGMENT), 9).await;
    let mut longer = one.clone();
    longer.push(0);
    assert_eq!(
        unseal(&longer).await,
        Err(SealError::Trailing { segment: 2 })
    );
    let segment =
        |index: usize| HEADER + index * SEALED_SEGMENT..HEADER + (index + 1) * SEALED_SEGMENT;
    let mut twice = one.clone();
    twice.extend_from_slice(&one[segment(2)]);
    assert_eq!(
        unseal(&twice).await,
        Err(SealError::Trailing { segment: 2 })
    );

    let mut reordered = one.clone();
    reordered[segment(0)].copy_from_slice(&one[segment(1)]);
    reordered[segment(1)].copy_from_slice(&one[segment(0)]);
    assert_eq!(
        unseal(&reordered).await,
        Err(SealError::Damaged { segment: 0 })
    );

    let mut without_first = one[..HEADER].to_vec();
    without_first.extend_from_slice(&one[segment(1).start..]);
    assert_eq!(
        unseal(&without_first).await,
        Err(SealError::Damaged { segment: 0 })
    );

    // The same segment of another file under the same content key.
    let other = seal(&data(3 * SEGMENT), 10).await;
    let mut swapped = one.clone();
    swapped[segment(1)].copy_from_slice(&other[segment(1)]);
    assert_eq!(
        unseal(&swapped).await,
        Err(SealError::Damaged { segment: 1 })
    );
    assert_eq!(
        unseal_at_random(&swapped),
        Err(SealError::Damaged { segment: 1 })
    );
    assert_eq!(unseal(&one).await.unwrap(), data(3 * SEGMENT));
}

#[tokio::test]
async fn an_empty_last_segment_belongs_to_an_empty_file_alone() {
    let (header, cipher) = keys(1).seal([9; 32]);
    let mut sealed = header.to_bytes().to_vec();
    let mut full = data(SEGMENT);
    cipher.seal(0, false, &mut full).unwrap();
    let mut empty = Vec::new();
    cipher.seal(1, true, &mut empty).unwrap();
    sealed.extend([full, empty].concat());
    let length = SealError::Length {
        len: SEALED_SEGMENT as u64 + 16,
    };
    assert_eq!(unseal(&sealed).await, Err(length));
    assert_eq!(unseal_at_random(&sealed), Err(length));
}

#[tokio::test]
async fn what_is_not_sealed_and_what_is_newer_is_told_apart() {
    assert_eq!(unseal(&data(100_000)).await, Err(SealError::NotSealed));
    assert_eq!(unseal(b"SAV").await, Err(SealError::NotSealed));
    let mut newer = seal(b"text", 9).await;
    newer[4] = 2;
    assert_eq!(
        unseal(&newer).await,
        Err(SealError::UnknownVersion { version: 2 })
    );
}

#[tokio::test]
async fn the_header_commits_to_the_key() {
    let sealed = seal(b"text", 9).await;
    let other = unseal_from(&keys(2), &sealed[..]).await;
    assert!(matches!(other, Err(Error::Seal(SealError::WrongKey))));
    // Salt and commitment, each byte of them.
    for at in 5..HEADER {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        assert_eq!(unseal(&changed).await, Err(SealError::WrongKey), "{at}");
    }
    // The header is bound to the segments: under the same key, with another header hash, they do not open.
    let (header, _) = keys(1).seal([9; 32]);
    let key = SubKey::from_bytes([1; 32]).derive_salted(Purpose::FileKey, &[9; 32]);
    let mut segment = sealed[HEADER..].to_vec();
    let without = SegmentCipher::new(key.as_bytes(), b"");
    assert_eq!(
        without.open(0, true, &mut segment),
        Err(SealError::Damaged { segment: 0 })
    );
    let mut segment = sealed[HEADER..].to_vec();
    let with = SegmentCipher::new(key.as_bytes(), blake3::hash(&header.to_bytes()).as_bytes());
    with.open(0, true, &mut segment).unwrap();
    assert_eq!(segment, b"text");
}

#[tokio::test]
async fn a_source_that_fails_is_an_error_both_ways() {
    use tokio::io::AsyncReadExt;

    let mut sealing = SealStream::new(&keys(1), (&b"some"[..]).chain(FailingReader)).unwrap();
    sealing.next().await.unwrap().unwrap();
    assert!(matches!(sealing.next().await, Err(Error::Source(_))));
    let sealed = seal(&data(100), 9).await;
    let opened = unseal_from(&keys(1), (&sealed[..sealed.len() - 1]).chain(FailingReader)).await;
    assert!(matches!(opened, Err(Error::Source(_))));
}

#[test]
fn layouts_end_where_counters_end() {
    let most = MAX_SEGMENTS * SEGMENT as u64;
    assert_eq!(Layout::of_plain(most).unwrap().segments(), MAX_SEGMENTS);
    assert_eq!(Layout::of_plain(most + 1), Err(SealError::TooLong));
    assert_eq!(Layout::of_sealed(u64::MAX), Err(SealError::TooLong));
    let (_, cipher) = keys(1).seal([9; 32]);
    let mut segment = Vec::new();
    assert_eq!(
        cipher.seal(MAX_SEGMENTS, true, &mut segment),
        Err(SealError::TooLong)
    );
    assert_eq!(
        cipher.open(u64::MAX, true, &mut vec![0; 16]),
        Err(SealError::TooLong)
    );
    cipher.seal(MAX_SEGMENTS - 1, true, &mut segment).unwrap();
}

#[test]
fn salts_are_random() {
    assert_ne!(random_salt().unwrap(), random_salt().unwrap());
    assert_eq!(format!("{:?}", keys(1)), "FileKeys([redacted])");
}

proptest! {
    #[test]
    fn any_change_is_noticed(len in 0usize..200_000, at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut sealed = seal(&data(len), 9).await;
            let at = at.index(sealed.len());
            sealed[at] ^= 1 << bit;
            prop_assert!(unseal(&sealed).await.is_err());
            prop_assert!(unseal_at_random(&sealed).is_err());
            Ok(())
        })?;
    }

    #[test]
    fn no_bytes_make_the_parsers_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), len: u64) {
        let _ = Header::parse(&bytes);
        if let Ok(layout) = Layout::of_sealed(len) {
            prop_assert_eq!(layout.sealed_len(), len);
        }
    }
}
