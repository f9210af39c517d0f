//! How the device reaches the Veilid network.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use veilid_core::{PublicKey, VeilidCapability, VeilidConfig};

use crate::{Error, Result};

/// How the device reaches the Veilid network, as a network settings file (JSON) says it. The default is the public network; a
/// field that is left out keeps Veilid's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkSettings {
    /// Bootstrap nodes, as records in Veilid's text form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bootstrap_records: Option<Vec<String>>,
    /// Bootstrap nodes, by domain name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<Vec<String>>,
    /// Keys that sign bootstrap records; an empty list accepts unsigned ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bootstrap_keys: Option<Vec<String>>,
    /// The password that separates this network from all others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_key: Option<String>,
    /// Keeps the device's keys in a plain file. For test networks: whoever reads the disk reads the archive.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub insecure_storage: bool,
    /// Whether to ask the router for open ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upnp: Option<bool>,
    /// Whether to look for changes of the own address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detect_address_changes: Option<bool>,
    /// What this node does not do for others: four letters each, such as `ROUT`, `RLAY`, `DHTV`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disable_capabilities: Option<Vec<String>>,
    /// How many records of others this node keeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_max_records: Option<u32>,
    /// How many MiB of records of others this node keeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_max_storage_space_mb: Option<u32>,
    /// A bad link to be simulated, by the name of one of Veilid's presets: `mobile`, `mobile-bad`, `mtu-blackhole`. For tests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chaos: Option<String>,
}

impl NetworkSettings {
    /// Puts the settings into a Veilid configuration; all but `chaos`, which a node is told once it runs.
    pub(crate) fn apply(&self, config: &mut VeilidConfig) -> Result<()> {
        let network = &mut config.network;
        let routing = &mut network.routing_table;
        set(&mut routing.bootstrap_records, &self.bootstrap_records);
        set(&mut routing.bootstrap, &self.bootstrap);
        if let Some(keys) = &self.bootstrap_keys {
            routing.bootstrap_keys = parse("bootstrap_keys", keys, public_key)?;
        }
        if let Some(key) = &self.network_key {
            network.network_key_password = Some(key.clone());
        }
        set(&mut network.upnp, &self.upnp);
        if self.detect_address_changes.is_some() {
            network.detect_address_changes = self.detect_address_changes;
        }
        set(
            &mut network.dht.remote_max_records,
            &self.remote_max_records,
        );
        set(
            &mut network.dht.remote_max_storage_space_mb,
            &self.remote_max_storage_space_mb,
        );
        if let Some(names) = &self.disable_capabilities {
            config.capabilities.disable =
                parse("disable_capabilities", names, VeilidCapability::from_str)?;
        }
        Ok(())
    }
}

/// A whole key: Veilid's own parser takes any length.
fn public_key(text: &str) -> Result<PublicKey, String> {
    let key = PublicKey::from_str(text).map_err(|e| e.to_string())?;
    match key.ref_value().len() {
        32 => Ok(key),
        len => Err(format!("a key of {len} bytes instead of 32")),
    }
}

fn set<T: Clone>(target: &mut T, value: &Option<T>) {
    if let Some(value) = value {
        *target = value.clone();
    }
}

fn parse<T, E: std::fmt::Display>(
    name: &'static str,
    texts: &[String],
    one: impl Fn(&str) -> Result<T, E>,
) -> Result<Vec<T>> {
    texts
        .iter()
        .map(|text| {
            one(text).map_err(|e| Error::Setting {
                name,
                reason: e.to_string(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_changes_nothing() {
        let mut config = VeilidConfig::new("test", "", "", Some("/x"), Some("/x"));
        let before = config.clone();
        NetworkSettings::default().apply(&mut config).unwrap();
        assert_eq!(config, before);
    }

    #[test]
    fn a_file_says_what_it_changes_and_a_mistyped_name_is_an_error() {
        let settings: NetworkSettings = serde_json::from_str(
            r#"{"network_key":"devnet","bootstrap_keys":[],"remote_max_records":20000,"disable_capabilities":["ROUT"]}"#,
        )
        .unwrap();
        let mut config = VeilidConfig::new("test", "", "", Some("/x"), Some("/x"));
        settings.apply(&mut config).unwrap();
        assert_eq!(
            config.network.network_key_password.as_deref(),
            Some("devnet")
        );
        assert_eq!(config.network.dht.remote_max_records, 20000);
        assert_eq!(config.capabilities.disable.len(), 1);
        assert!(serde_json::from_str::<NetworkSettings>(r#"{"netwrok_key":"x"}"#).is_err());
    }

    #[test]
    fn a_bad_value_is_named() {
        let settings = NetworkSettings {
            bootstrap_keys: Some(vec!["nonsense".into()]),
            ..NetworkSettings::default()
        };
        let mut config = VeilidConfig::new("test", "", "", Some("/x"), Some("/x"));
        assert!(matches!(
            settings.apply(&mut config),
            Err(Error::Setting {
                name: "bootstrap_keys",
                ..
            })
        ));
    }
}
