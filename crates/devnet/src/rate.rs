//! A slow access link: the kernel's token bucket (`tbf`), as netlink wants to be told.

use crate::{Error, Result};

/// A token bucket: how many bytes pass in a second, how many may pass at once, and how many wait
/// before the next is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TokenBucket {
    rate: u32,
    burst: u32,
    limit: u32,
}

impl TokenBucket {
    /// The kernel's name for it.
    pub(crate) const KIND: &'static str = "tbf";

    /// From `linux/pkt_sched.h`.
    const TCA_TBF_PARMS: u16 = 1;
    const TCA_TBF_BURST: u16 = 6;
    const LINKLAYER_ETHERNET: u8 = 1;

    /// Two full frames, or the kernel's segmentation stalls the link.
    const MIN_BURST: u32 = 2 * 1_514;
    const MAX_BURST: u32 = 256 * 1024;
    /// One Veilid message of 32 KB leaves as some 25 datagrams at once; they have to find room.
    const MIN_LIMIT: u32 = 64 * 1024;

    /// A bucket of 50 ms with a queue of 400 ms, as an access link has it.
    pub(crate) fn new(bytes_per_second: u64) -> Result<Self> {
        let rate = u32::try_from(bytes_per_second)
            .ok()
            .filter(|rate| *rate > 0)
            .ok_or(Error::InvalidRate { bytes_per_second })?;
        Ok(Self {
            rate,
            burst: (rate / 20).clamp(Self::MIN_BURST, Self::MAX_BURST),
            limit: (rate / 5 * 2).max(Self::MIN_LIMIT),
        })
    }

    /// The netlink attributes of `struct tc_tbf_qopt` and of the burst in bytes.
    pub(crate) fn attributes(self) -> [(u16, Vec<u8>); 2] {
        let mut parameters = Vec::with_capacity(36);
        // struct tc_ratespec rate: cell_log, linklayer, overhead, cell_align, mpu, rate. A set
        // link layer saves the kernel's rate table.
        parameters.extend([0, Self::LINKLAYER_ETHERNET]);
        parameters.extend([0; 6]);
        parameters.extend(self.rate.to_ne_bytes());
        // struct tc_ratespec peakrate: none.
        parameters.extend([0; 12]);
        parameters.extend(self.limit.to_ne_bytes());
        // buffer and mtu in ticks: given as a burst in bytes instead.
        parameters.extend([0; 8]);
        [
            (Self::TCA_TBF_PARMS, parameters),
            (Self::TCA_TBF_BURST, self.burst.to_ne_bytes().to_vec()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_laid_out_as_the_kernel_reads_it() {
        let bucket = TokenBucket::new(1_000_000).unwrap();
        let [(parms, parameters), (burst, bytes)] = bucket.attributes();
        assert_eq!((parms, burst), (1, 6));
        assert_eq!(parameters.len(), 36);
        assert_eq!(parameters[1], 1);
        assert_eq!(parameters[8..12], 1_000_000_u32.to_ne_bytes());
        assert_eq!(parameters[24..28], 400_000_u32.to_ne_bytes());
        assert_eq!(bytes, 50_000_u32.to_ne_bytes());
    }

    #[test]
    fn a_slow_link_still_takes_a_message() {
        let bucket = TokenBucket::new(1).unwrap();
        assert_eq!(bucket.burst, TokenBucket::MIN_BURST);
        assert_eq!(bucket.limit, TokenBucket::MIN_LIMIT);
    }

    #[test]
    fn rates_out_of_range_are_refused() {
        for bytes_per_second in [0, u64::from(u32::MAX) + 1] {
            assert!(matches!(
                TokenBucket::new(bytes_per_second),
                Err(Error::InvalidRate { bytes_per_second: rate }) if rate == bytes_per_second
            ));
        }
    }
}
