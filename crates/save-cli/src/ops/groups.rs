//! Operations on groups and members.

use std::pin::pin;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use save_backend::{Fault, GroupId, GroupInfo, Ignored, Link, LinkKind};

use super::{Context, selection};
use crate::error::{Error, Failure, Result};
use crate::items::{Item, LeftAlone, Secret, Stage};

/// How often it is said that a change waits to be published.
const PUBLICATION_INTERVAL: Duration = Duration::from_millis(200);

impl Context<'_> {
    pub(super) async fn create(&self, name: &str, me: &str) -> Result<()> {
        let group = self.backend.create_group(name, me).await?;
        self.output.item(group_item(&group)).await?;
        self.publication(&group.id).await
    }

    pub(super) async fn join(&self, link: &Secret, me: &str) -> Result<()> {
        let link = Link::parse(link.expose())?;
        self.online().await?;
        self.output.progress(Stage::Finding, 0, None);
        let group = tokio::time::timeout(self.limit, self.backend.join_group(&link, me))
            .await
            .map_err(|_| Error::GroupDoesNotAnswer { limit: self.limit })??;
        self.output.item(group_item(&group)).await?;
        self.publication(&group.id).await
    }

    pub(super) async fn groups(&self) -> Result<()> {
        for group in self.backend.groups().await {
            self.output.item(group_item(&group)).await?;
        }
        Ok(())
    }

    pub(super) async fn link(&self, group: Option<&str>, kind: &str) -> Result<()> {
        let id = self.group(group).await?;
        let kind = LinkKind::ALL
            .into_iter()
            .find(|known| known.as_str() == kind);
        let kind = kind.ok_or_else(|| Error::Usage("there is no such kind of link".to_owned()))?;
        let link = self.backend.link(&id, kind).await?;
        self.output
            .item(Item::Link {
                group: id.to_string(),
                kind: link.kind().to_string(),
                link: Secret::new(link.expose()),
                expires: link.expires_at(),
                label: link.label().map(str::to_owned),
            })
            .await
    }

    pub(super) async fn members(&self, group: Option<&str>, refresh: bool) -> Result<()> {
        let id = self.group(group).await?;
        if refresh {
            self.online().await?;
        }
        let mut members = self.backend.members(&id, refresh).await?;
        if refresh {
            self.backend.look_at_members(&id).await?;
            members = self.backend.members(&id, false).await?;
        }
        let ignored = self.backend.ignored(&id).await?;
        for member in members {
            let left = ignored
                .iter()
                .filter(|(repo, _)| *repo == member.repo)
                .map(|(_, left)| left)
                .max_by_key(|left| left.remaining);
            self.output
                .item(Item::Member {
                    name: member.name,
                    repo: member.repo.to_string(),
                    role: member.role.map(|role| role.to_string()),
                    is_self: member.is_self,
                    files: Some(member.files),
                    bytes: Some(member.bytes),
                    tunnels: member.tunnels,
                    last_seen: member.last_seen,
                    ignored: left.map(left_alone),
                })
                .await?;
        }
        for guest in self.backend.guests(&id, refresh).await? {
            self.output
                .item(Item::Guest {
                    device: guest.device.to_string(),
                    role: guest.role.map(|role| role.to_string()),
                    last_seen: guest.last_seen,
                })
                .await?;
        }
        Ok(())
    }

    pub(super) async fn ping(&self, group: Option<&str>, member: Option<&str>) -> Result<()> {
        let id = self.group(group).await?;
        self.online().await?;
        let members = self.backend.members(&id, true).await?;
        let asked: Vec<_> = match member {
            Some(wanted) => vec![selection::member(&members, wanted)?],
            None => members.iter().filter(|member| !member.is_self).collect(),
        };
        let mut answers: FuturesUnordered<_> = asked
            .iter()
            .map(|member| {
                let id = &id;
                async move {
                    let ping = self.backend.ping(id, &member.repo);
                    let answer = match tokio::time::timeout(self.limit, ping).await {
                        Ok(answer) => answer.map_err(Error::from),
                        Err(_) => Err(Error::Silence { limit: self.limit }),
                    };
                    (member, answer)
                }
            })
            .collect();
        let mut answered = asked.is_empty();
        while let Some((member, answer)) = answers.next().await {
            let (repo, name) = (member.repo.to_string(), member.name.clone());
            let item = match answer {
                Ok(time) => {
                    answered = true;
                    Item::Pong {
                        repo,
                        member: name,
                        milliseconds: time.as_secs_f64() * 1000.0,
                    }
                }
                Err(error) => Item::Silent {
                    repo,
                    member: name,
                    error: Failure::from(&error),
                },
            };
            self.output.item(item).await?;
        }
        if answered {
            Ok(())
        } else {
            Err(Error::NobodyAnswered)
        }
    }

    /// Waits for the network, where that is allowed.
    pub(super) async fn online(&self) -> Result<()> {
        if self.backend.is_online() {
            return Ok(());
        }
        if self.offline {
            return Err(Error::NeedsNetwork);
        }
        self.output.progress(Stage::Connecting, 0, None);
        self.backend.wait_online(self.limit).await?;
        self.output.touch();
        Ok(())
    }

    /// Waits until what was done in a group is published, and says whether it is. That it is not yet is no failure: it is
    /// stored, and `save run` will do the rest.
    pub(super) async fn publication(&self, id: &GroupId) -> Result<()> {
        let reason = if self.offline {
            Some("--offline was given".to_owned())
        } else {
            match tokio::time::timeout(self.limit, self.published(id)).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(Failure::from(&error).message),
                Err(_) => Some(format!(
                    "the network did not take it within {} s",
                    self.limit.as_secs()
                )),
            }
        };
        self.output
            .item(Item::Publication {
                published: reason.is_none(),
                reason,
            })
            .await
    }

    async fn published(&self, id: &GroupId) -> Result<()> {
        self.output.touch();
        // The limit is the caller's.
        let mut published = pin!(self.backend.flush(id, Duration::MAX));
        loop {
            tokio::select! {
                done = &mut published => return Ok(done?),
                () = tokio::time::sleep(PUBLICATION_INTERVAL) => {}
            }
            let stage = match self.backend.is_online() {
                true => Stage::Publishing,
                false => Stage::Connecting,
            };
            self.output.progress(stage, 0, None);
        }
    }
}

fn left_alone(left: &Ignored) -> LeftAlone {
    LeftAlone {
        reason: match left.fault {
            Fault::Silent => "silent",
            Fault::Stalling => "stalling",
            Fault::Lied => "lied",
            Fault::Starving => "starving",
            _ => "other",
        }
        .to_owned(),
        strikes: left.strikes,
        seconds: left.remaining.as_secs(),
    }
}

pub(super) fn group_item(group: &GroupInfo) -> Item {
    Item::Group {
        id: group.id.to_string(),
        name: group.name.clone(),
        members: group.members,
        role: group.role.to_string(),
        writable: group.writable,
        published: !group.unpublished,
        pending: group
            .pending
            .iter()
            .map(|what| what.as_str().to_owned())
            .collect(),
    }
}
