//! The network settings of a node, as a backend reads them from its network settings file.

use std::path::Path;
use std::str::FromStr as _;

use serde::{Deserialize, Serialize};
use veilid_core::{PublicKey, VeilidCapability, VeilidConfig};

use crate::{Error, Result};

/// How a node reaches its Veilid network. A field that is absent leaves Veilid's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkSettings {
    /// Bootstrap nodes, as records in Veilid's own text form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bootstrap_records: Option<Vec<String>>,
    /// Bootstrap nodes, by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<Vec<String>>,
    /// Keys that sign bootstrap records; none accepts unsigned ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bootstrap_keys: Option<Vec<String>>,
    /// The password that separates this network from every other one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_key: Option<String>,
    /// Whether secrets are kept in a plain file, for machines without a keyring.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub insecure_storage: Option<bool>,
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
    /// A bad link, simulated inside the node once it has started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chaos: Option<ChaosPreset>,
}

impl NetworkSettings {
    /// The same settings with a bad link.
    pub fn with_chaos(mut self, preset: ChaosPreset) -> Self {
        self.chaos = Some(preset);
        self
    }

    /// The same settings for a node that serves no one else: no routes, no relaying, no records.
    ///
    /// For a node whose link is slowed down, so that it does not slow others down as their hop.
    pub fn serving_nobody(mut self) -> Self {
        self.disable_capabilities = Some(["ROUT", "RLAY", "DHTV"].map(str::to_owned).into());
        self
    }

    /// Writes the settings to a file that a backend reads.
    pub fn write(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_vec_pretty(self).map_err(|error| Error::File {
            path: path.to_owned(),
            source: error.into(),
        })?;
        std::fs::write(path, json).map_err(Error::file(path))
    }

    /// Puts the settings into Veilid's configuration; all but the chaos, which a node is told once
    /// it runs.
    pub fn apply(&self, config: &mut VeilidConfig) -> Result<()> {
        let network = &mut config.network;
        let routing = &mut network.routing_table;
        set(&mut routing.bootstrap_records, &self.bootstrap_records);
        set(&mut routing.bootstrap, &self.bootstrap);
        if let Some(keys) = &self.bootstrap_keys {
            routing.bootstrap_keys = parse_all("bootstrap_keys", keys, PublicKey::from_str)?;
        }
        if let Some(key) = &self.network_key {
            network.network_key_password = Some(key.clone());
        }
        set(&mut network.upnp, &self.upnp);
        if let Some(detect) = self.detect_address_changes {
            network.detect_address_changes = Some(detect);
        }
        set(
            &mut network.dht.remote_max_records,
            &self.remote_max_records,
        );
        set(
            &mut network.dht.remote_max_storage_space_mb,
            &self.remote_max_storage_space_mb,
        );
        if let Some(insecure) = self.insecure_storage {
            config.protected_store.always_use_insecure_storage = insecure;
            config.protected_store.allow_insecure_fallback = insecure;
        }
        if let Some(names) = &self.disable_capabilities {
            let parse = VeilidCapability::from_str;
            config.capabilities.disable = parse_all("disable_capabilities", names, parse)?;
        }
        Ok(())
    }
}

/// A bad link, as Veilid measured it and simulates it inside a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ChaosPreset {
    /// A cellular link on a fair day: 4 Mbit/s up, 6.4 down, queues of 0.8 s, a collapse of 45 s
    /// about every ten minutes.
    Mobile,
    /// A cellular link on a bad day: 2 Mbit/s up, 4.8 down, and collapses of 100 s about 70 s
    /// apart.
    MobileBad,
    /// An IPv4 path that silently drops packets over 1,420 bytes.
    MtuBlackhole,
}

impl ChaosPreset {
    /// The preset's name in Veilid's `chaos preset` command and in the settings file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mobile => "mobile",
            Self::MobileBad => "mobile-bad",
            Self::MtuBlackhole => "mtu-blackhole",
        }
    }
}

fn set<T: Clone>(field: &mut T, value: &Option<T>) {
    if let Some(value) = value {
        field.clone_from(value);
    }
}

fn parse_all<T, E>(
    setting: &'static str,
    values: &[String],
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<Vec<T>> {
    values
        .iter()
        .map(|value| {
            parse(value).map_err(|_| Error::InvalidSetting {
                setting,
                value: value.clone(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_the_file() {
        let settings = NetworkSettings {
            bootstrap_records: Some(vec!["0|0|VLD0:x|192.88.99.1|U5150".to_owned()]),
            bootstrap: Some(Vec::new()),
            network_key: Some("devnet".to_owned()),
            ..NetworkSettings::default()
        }
        .with_chaos(ChaosPreset::MobileBad)
        .serving_nobody();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("network.json");
        settings.write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"chaos\": \"mobile-bad\""), "{text}");
        assert!(!text.contains("upnp"), "{text}");
        let back: NetworkSettings = serde_json::from_str(&text).unwrap();
        assert_eq!(back, settings);
    }

    #[test]
    fn the_preset_is_named_alike_in_the_file_and_to_veilid() {
        for preset in [
            ChaosPreset::Mobile,
            ChaosPreset::MobileBad,
            ChaosPreset::MtuBlackhole,
        ] {
            let json = serde_json::to_string(&preset).unwrap();
            assert_eq!(json, format!("\"{}\"", preset.name()));
        }
    }

    #[test]
    fn absent_settings_leave_the_defaults() {
        let default = VeilidConfig::new("test", "test", "org", Some("/x"), Some("/x"));
        let mut config = default.clone();
        NetworkSettings::default().apply(&mut config).unwrap();
        assert_eq!(config, default);
    }

    #[test]
    fn an_unknown_capability_is_named() {
        let settings = NetworkSettings {
            disable_capabilities: Some(vec!["ROUT".to_owned(), "ROUTE".to_owned()]),
            ..NetworkSettings::default()
        };
        let mut config = VeilidConfig::new("test", "test", "org", Some("/x"), Some("/x"));
        assert!(matches!(
            settings.apply(&mut config),
            Err(Error::InvalidSetting { setting: "disable_capabilities", value }) if value == "ROUTE"
        ));
    }
}
