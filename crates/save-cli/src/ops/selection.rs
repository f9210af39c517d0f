//! Finding the one group, member or file that a few words mean.

use save_backend::{GroupId, ListedFile, Member, PublicKey};

use super::Context;
use crate::error::{Error, Result};

impl Context<'_> {
    /// The group that is meant.
    pub(super) async fn group(&self, wanted: Option<&str>) -> Result<GroupId> {
        let groups = self.backend.groups().await;
        let named: Vec<Named> = groups
            .iter()
            .map(|group| Named {
                name: group.name.as_deref(),
                key: group.id.to_string(),
            })
            .collect();
        let Some(wanted) = wanted else {
            return match groups.as_slice() {
                [] => Err(Error::NoGroups),
                [group] => Ok(group.id.clone()),
                _ => Err(Error::Ambiguous {
                    what: "group",
                    wanted: "--group".to_owned(),
                    choices: named.iter().map(Named::label).collect(),
                }),
            };
        };
        let index = select(&named, wanted, "group")?.ok_or_else(|| Error::NoSuchGroup {
            wanted: wanted.to_owned(),
        })?;
        groups
            .get(index)
            .map(|group| group.id.clone())
            .ok_or(Error::NoGroups)
    }
}

/// The member that is meant.
pub(super) fn member<'a>(members: &'a [Member], wanted: &str) -> Result<&'a Member> {
    let named: Vec<Named> = members
        .iter()
        .map(|member| Named {
            name: member.name.as_deref(),
            key: member.repo.to_string(),
        })
        .collect();
    select(&named, wanted, "member")?
        .and_then(|index| members.get(index))
        .ok_or_else(|| Error::NoSuchMember {
            wanted: wanted.to_owned(),
        })
}

/// The file that is meant, if any member has one at this path. Equal files count as one: the nearest is taken.
pub(super) fn file<'a>(
    files: &'a [ListedFile],
    path: &str,
    from: Option<&PublicKey>,
) -> Result<Option<&'a ListedFile>> {
    let mut candidates: Vec<&ListedFile> = files
        .iter()
        .filter(|file| file.entry.path.as_str() == path)
        .filter(|file| from.is_none_or(|repo| file.repo == *repo))
        .collect();
    candidates.sort_by_key(|file| (!file.here, !file.is_self));
    let Some(first) = candidates.first() else {
        return Ok(None);
    };
    if candidates
        .iter()
        .any(|file| file.entry.plain_hash != first.entry.plain_hash)
    {
        return Err(Error::Ambiguous {
            what: "member's file (choose with --from)",
            wanted: path.to_owned(),
            choices: candidates
                .iter()
                .map(|file| {
                    Named {
                        name: file.member.as_deref(),
                        key: file.repo.to_string(),
                    }
                    .label()
                })
                .collect(),
        });
    }
    Ok(Some(first))
}

struct Named<'a> {
    name: Option<&'a str>,
    key: String,
}

impl Named<'_> {
    fn label(&self) -> String {
        match self.name {
            Some(name) => format!("{name} ({})", short_key(&self.key)),
            None => short_key(&self.key).to_owned(),
        }
    }
}

/// The beginning of a key, long enough to tell a group's members apart.
pub(crate) fn short_key(key: &str) -> &str {
    let bare = key.split_once(':').map_or(key, |(_, bare)| bare);
    bare.get(..8).unwrap_or(bare)
}

/// The index of the only thing with this name, or else of the only one whose key begins so.
fn select(all: &[Named<'_>], wanted: &str, what: &'static str) -> Result<Option<usize>> {
    let by_name = |named: &Named| named.name == Some(wanted);
    let by_key = |named: &Named| {
        let bare = named.key.split_once(':').map_or("", |(_, bare)| bare);
        !wanted.is_empty() && (named.key.starts_with(wanted) || bare.starts_with(wanted))
    };
    let fits = |test: &dyn Fn(&Named) -> bool| -> Vec<usize> {
        all.iter()
            .enumerate()
            .filter(|(_, named)| test(named))
            .map(|(index, _)| index)
            .collect()
    };
    let mut found = fits(&by_name);
    if found.is_empty() {
        found = fits(&by_key);
    }
    match found.as_slice() {
        [] => Ok(None),
        [index] => Ok(Some(*index)),
        _ => Err(Error::Ambiguous {
            what,
            wanted: wanted.to_owned(),
            choices: found
                .iter()
                .filter_map(|index| all.get(*index))
                .map(Named::label)
                .collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Named<'static>> {
        [
            (Some("press"), "VLD0:abc"),
            (Some("night"), "VLD0:abd"),
            (Some("press"), "VLD0:xyz"),
            (None, "VLD0:press"),
        ]
        .map(|(name, key)| Named {
            name,
            key: key.to_owned(),
        })
        .into()
    }

    #[test]
    fn a_name_wins_over_a_key() {
        assert_eq!(select(&all(), "night", "group").unwrap(), Some(1));
        assert_eq!(select(&all(), "abd", "group").unwrap(), Some(1));
        assert_eq!(select(&all(), "VLD0:x", "group").unwrap(), Some(2));
        assert_eq!(select(&all(), "nobody", "group").unwrap(), None);
        assert_eq!(select(&all(), "", "group").unwrap(), None);
    }

    #[test]
    fn two_that_fit_are_named() {
        for wanted in ["press", "ab"] {
            let Err(Error::Ambiguous { choices, .. }) = select(&all(), wanted, "group") else {
                panic!("{wanted} fits two");
            };
            assert_eq!(choices.len(), 2);
        }
    }

    #[test]
    fn keys_are_shortened_without_their_kind() {
        assert_eq!(short_key("VLD0:0123456789"), "01234567");
        assert_eq!(short_key("abc"), "abc");
    }
}
