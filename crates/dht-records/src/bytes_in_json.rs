//! How bytes stand in JSON: byte strings as base64url without padding, hashes and ids in lower-case hex.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

/// Byte strings of any length.
pub(crate) mod base64 {
    use super::*;
    use data_encoding::BASE64URL_NOPAD;

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64URL_NOPAD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64URL_NOPAD
            .decode(text.as_bytes())
            .map_err(|_| D::Error::custom("not base64url"))
    }
}

/// Hashes of 32 bytes.
pub(crate) mod hex32 {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        bytes: &[u8; 32],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        hex::serialize(bytes, serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<[u8; 32], D::Error> {
        hex::deserialize(deserializer)
    }
}

/// Arrays of any length.
pub(crate) mod hex {
    use super::*;
    use data_encoding::HEXLOWER;

    pub(crate) fn serialize<const N: usize, S: Serializer>(
        bytes: &[u8; N],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&HEXLOWER.encode(bytes))
    }

    pub(crate) fn deserialize<'de, const N: usize, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<[u8; N], D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = HEXLOWER
            .decode(text.as_bytes())
            .map_err(|_| D::Error::custom("not lower-case hex"))?;
        bytes
            .try_into()
            .map_err(|_| D::Error::custom("wrong length"))
    }
}
