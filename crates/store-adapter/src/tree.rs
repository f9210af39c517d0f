//! The hash tree of a blob: the pairs of hashes above its 16 KiB groups, kept in pages.
//!
//! A pair stands between two groups: its left half ends with group `i`, its right half begins with group `i + 1`. So `i` names
//! it, whatever the blob's size turns out to be, and a blob of n groups has the pairs 0 to n - 2. Every 1,024th pair stands high
//! up in the tree and is known late: those are numbered again on the next level, and so on. So each page is complete soon
//! after its groups are, and the way from the root to a group of a 16 GiB blob crosses two pages.

use bao_tree::TreeNode;
use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use iroh_blobs::Hash;

use crate::seal::SEGMENT;

/// The hashes of the left and the right half.
pub(crate) type Pair = [u8; 64];

/// Pairs in a page.
const FANOUT: u64 = 1024;
/// Chunks in a group.
const GROUP_CHUNKS: u64 = 16;

/// Which page of a blob's tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PageId {
    pub(crate) level: u8,
    pub(crate) number: u64,
}

impl PageId {
    /// The groups that cannot be verified without this page: first, and one past the last.
    pub(crate) fn groups(self) -> (u64, u64) {
        let span = FANOUT.saturating_pow(u32::from(self.level) + 1);
        let start = span.saturating_mul(self.number);
        (start, start.saturating_add(span))
    }
}

/// The page and the slot in it of a pair.
pub(crate) fn place(pair: u64) -> (PageId, usize) {
    let mut index = pair;
    let mut level = 0;
    while (index + 1).is_multiple_of(FANOUT) {
        index = (index + 1) / FANOUT - 1;
        level += 1;
    }
    let number = index / FANOUT;
    // Less than 1,024.
    let slot = (index % FANOUT) as usize;
    (PageId { level, number }, slot)
}

/// All pages of a blob of `size` bytes.
pub(crate) fn pages(size: u64) -> Vec<PageId> {
    let mut pages = Vec::new();
    let mut pairs = groups(size).saturating_sub(1);
    let mut level = 0;
    while pairs > 0 {
        pages.extend((0..pairs.div_ceil(FANOUT)).map(|number| PageId { level, number }));
        pairs /= FANOUT;
        level += 1;
    }
    pages
}

/// Whether a page of a blob of `size` bytes holds anything.
pub(crate) fn is_used(page: PageId, size: u64) -> bool {
    // Its first slot holds a pair, unless the blob ends before.
    let span = FANOUT.saturating_pow(u32::from(page.level));
    let first = (page.number * FANOUT + 1).saturating_mul(span) - 1;
    first < groups(size).saturating_sub(1)
}

/// How many groups a blob has.
pub(crate) fn groups(size: u64) -> u64 {
    size.div_ceil(SEGMENT as u64)
}

/// The pair that iroh's name for it means; none for the pairs inside a group, which are computed from its data.
pub(crate) fn pair_of(node: TreeNode) -> Option<u64> {
    let mid = node.mid().0;
    mid.is_multiple_of(GROUP_CHUNKS)
        .then(|| mid / GROUP_CHUNKS - 1)
}

/// A page in memory; slots past its end were never written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Page(pub(crate) Vec<u8>);

impl Page {
    pub(crate) fn get(&self, slot: usize) -> Option<Pair> {
        let bytes = self.0.get(slot * 64..slot * 64 + 64)?;
        bytes.try_into().ok()
    }

    pub(crate) fn set(&mut self, slot: usize, pair: &Pair) {
        let end = slot * 64 + 64;
        if self.0.len() < end {
            self.0.resize(end, 0);
        }
        self.0[slot * 64..end].copy_from_slice(pair);
    }
}

/// The hash of a group that is not a whole blob.
pub(crate) fn group_hash(group: u64, data: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(group * SEGMENT as u64);
    hasher.update(data);
    hasher.finalize_non_root()
}

/// The hash above a pair.
pub(crate) fn parent_hash(pair: &Pair, is_root: bool) -> [u8; 32] {
    let (left, right) = halves(pair);
    if is_root {
        *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes()
    } else {
        merge_subtrees_non_root(&left, &right, Mode::Hash)
    }
}

pub(crate) fn halves(pair: &Pair) -> ([u8; 32], [u8; 32]) {
    let (mut left, mut right) = ([0; 32], [0; 32]);
    left.copy_from_slice(&pair[..32]);
    right.copy_from_slice(&pair[32..]);
    (left, right)
}

/// Builds the tree while groups come in, with memory for its height alone.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    groups: u64,
    /// The hash of a finished subtree, and its first group.
    stack: Vec<([u8; 32], u64)>,
}

impl Builder {
    /// Takes the next group's hash, and gives what pairs are known now.
    pub(crate) fn push(&mut self, hash: [u8; 32], mut emit: impl FnMut(u64, Pair)) {
        // Not before the next group is there: what has none after it belongs to the root's side.
        while self.stack.len() > self.groups.count_ones() as usize {
            self.merge(false, &mut emit);
        }
        self.stack.push((hash, self.groups));
        self.groups += 1;
    }

    /// Ends the tree, and gives the blob's hash. There must have been two groups at least: of a single one, the hash is another.
    pub(crate) fn finish(mut self, mut emit: impl FnMut(u64, Pair)) -> Option<Hash> {
        while self.stack.len() > 1 {
            let is_root = self.stack.len() == 2;
            self.merge(is_root, &mut emit);
        }
        (self.groups > 1)
            .then(|| self.stack.pop())
            .flatten()
            .map(|(hash, _)| Hash::from_bytes(hash))
    }

    fn merge(&mut self, is_root: bool, emit: &mut impl FnMut(u64, Pair)) {
        let (Some((right, begin)), Some((left, start))) = (self.stack.pop(), self.stack.pop())
        else {
            return;
        };
        let mut pair = [0; 64];
        pair[..32].copy_from_slice(&left);
        pair[32..].copy_from_slice(&right);
        emit(begin - 1, pair);
        self.stack.push((parent_hash(&pair, is_root), start));
    }
}

/// The hash and the pairs of a blob whose groups are all there.
pub(crate) fn tree_of<'a>(
    groups: impl ExactSizeIterator<Item = &'a [u8]>,
) -> (Hash, Vec<Option<Pair>>) {
    let mut pairs = vec![None; groups.len().saturating_sub(1)];
    if pairs.is_empty() {
        let mut groups = groups;
        return (Hash::new(groups.next().unwrap_or_default()), pairs);
    }
    let mut builder = Builder::default();
    // There are as many places as there are pairs.
    let mut put = |index: u64, pair| {
        if let Some(place) = pairs.get_mut(index as usize) {
            *place = Some(pair);
        }
    };
    for (group, data) in (0..).zip(groups) {
        builder.push(group_hash(group, data), &mut put);
    }
    let hash = builder.finish(put);
    // There were two groups at least.
    (hash.unwrap_or(Hash::EMPTY), pairs)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use bao_tree::{BaoTree, io::outboard::PreOrderMemOutboard, io::sync::Outboard};
    use iroh_blobs::store::IROH_BLOCK_SIZE;

    use super::*;

    #[test]
    fn the_tree_is_irohs() {
        for groups in (1..70).chain([255, 256, 257, 1024, 1025, 2049]) {
            for tail in [1, 1024, SEGMENT] {
                let size = (groups - 1) * SEGMENT + tail;
                let data: Vec<u8> = (0..size).map(|i| (i / 7) as u8).collect();
                let theirs = PreOrderMemOutboard::create(&data, IROH_BLOCK_SIZE);
                let (hash, pairs) = tree_of(data.chunks(SEGMENT));
                assert_eq!(hash.as_bytes(), theirs.root.as_bytes(), "{size}");
                let tree = BaoTree::new(size as u64, IROH_BLOCK_SIZE);
                let mut seen = 0;
                for node in tree.pre_order_nodes_iter() {
                    let Some((left, right)) = theirs.load(node).unwrap() else {
                        continue;
                    };
                    let Some(index) = pair_of(node) else {
                        panic!("{node:?} of {size}")
                    };
                    let pair = pairs[index as usize].unwrap();
                    assert_eq!(
                        (*left.as_bytes(), *right.as_bytes()),
                        halves(&pair),
                        "{size}"
                    );
                    seen += 1;
                }
                assert_eq!(seen, pairs.len());
                assert_eq!(pairs.len(), groups - 1);
            }
        }
    }

    #[test]
    fn every_pair_has_a_place_of_its_own_in_the_listed_pages() {
        for pairs in [
            1u64,
            2,
            1022,
            1023,
            1024,
            1025,
            5000,
            1 << 20,
            (1 << 20) + 1025,
        ] {
            let listed: HashSet<PageId> = pages((pairs + 1) * SEGMENT as u64).into_iter().collect();
            let mut taken = HashSet::new();
            let mut used = HashSet::new();
            for pair in 0..pairs {
                let place = place(pair);
                assert!(place.1 < 1024);
                assert!(taken.insert(place), "{pair}");
                used.insert(place.0);
                let (start, end) = place.0.groups();
                assert!(start <= pair && pair < end);
            }
            let size = (pairs + 1) * SEGMENT as u64;
            for page in &listed {
                assert_eq!(
                    used.contains(page),
                    is_used(*page, size),
                    "{page:?} of {pairs}"
                );
            }
            assert!(used.is_subset(&listed), "{pairs}");
            assert!(listed.len() - used.len() <= 2, "{pairs}");
        }
    }
}
