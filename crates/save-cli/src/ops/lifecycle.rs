//! Operations on a group's name, keys and end.

use save_backend::{GroupId, Member, PublicKey};
use tokio::sync::watch;

use super::groups::group_item;
use super::{Context, selection};
use crate::error::{Error, Result};
use crate::items::{Item, Stage};

impl Context<'_> {
    pub(super) async fn rename(&self, group: Option<&str>, name: &str, me: bool) -> Result<()> {
        let id = self.group(group).await?;
        if me {
            self.backend.rename_me(&id, name).await?;
        } else {
            self.backend.rename_group(&id, name).await?;
        }
        self.show(&id).await?;
        self.publication(&id).await
    }

    pub(super) async fn overrule(&self, group: Option<&str>) -> Result<()> {
        let id = self.group(group).await?;
        self.online().await?;
        self.output.progress(Stage::Finding, 0, None);
        if !self.backend.overrule(&id).await? {
            return Err(Error::Usage(
                "there is nothing to overrule: no other device's list is missing here (any more)"
                    .to_owned(),
            ));
        }
        self.show(&id).await?;
        self.publication(&id).await
    }

    pub(super) async fn leave(&self, group: Option<&str>, this_device: bool) -> Result<()> {
        let id = self.group(group).await?;
        let told = if this_device {
            self.here(self.backend.forget_group(&id)).await?;
            false
        } else {
            // Without a network the others are told later.
            if let Err(error) = self.online().await {
                tracing::debug!(%error, "leaving without a network");
            }
            self.output.progress(Stage::Publishing, 0, None);
            // What the others are told has this limit; what goes here may be much.
            let leaving = self.backend.leave_group(&id, self.limit);
            self.here(leaving).await?
        };
        self.output
            .item(Item::Left {
                group: id.to_string(),
                told,
                this_device,
            })
            .await
    }

    pub(super) async fn move_away(
        &self,
        group: Option<&str>,
        without: &[String],
        to: Option<&str>,
    ) -> Result<()> {
        let id = self.group(group).await?;
        let members = self.backend.members(&id, false).await?;
        let left_out = without
            .iter()
            .map(|wanted| Ok(selection::member(&members, wanted)?.repo.clone()))
            .collect::<Result<Vec<PublicKey>>>()?;
        let stay: Vec<PublicKey> = members
            .iter()
            .map(|member| member.repo.clone())
            .filter(|repo| !left_out.contains(repo))
            .collect();
        let new = match to {
            Some(to) => {
                let to = self.group(Some(to)).await?;
                self.backend.announce_move(&id, &to, &stay).await?;
                to
            }
            None => self.backend.move_group(&id, &stay).await?.id,
        };
        self.show(&new).await?;
        self.copy_into(&id, &new).await?;
        self.publication(&new).await?;
        self.publication(&id).await
    }

    pub(super) async fn moved(&self, group: Option<&str>, follow: bool) -> Result<()> {
        let id = self.group(group).await?;
        self.online().await?;
        self.output.progress(Stage::Finding, 0, None);
        let moved = self.backend.moved(&id).await?;
        let moved = moved.ok_or(save_backend::Error::NotMoved)?;
        let members: Vec<Member> = self.backend.members(&id, false).await?;
        let member = members.into_iter().find(|member| member.repo == moved.by);
        self.output
            .item(Item::Moved {
                group: id.to_string(),
                by: moved.by.to_string(),
                member: member.and_then(|member| member.name),
                to: moved.to.to_string(),
            })
            .await?;
        if !follow {
            return Ok(());
        }
        let joined = self.backend.follow_move(&id).await?;
        self.output.item(group_item(&joined)).await?;
        self.copy_into(&id, &joined.id).await?;
        self.publication(&joined.id).await
    }

    pub(super) async fn copy(&self, group: Option<&str>, to: &str) -> Result<()> {
        let to = self.group(Some(to)).await?;
        let id = self.group(group).await?;
        if id == to {
            return Err(Error::Usage("these are the same group".to_owned()));
        }
        self.copy_into(&id, &to).await?;
        self.publication(&to).await
    }

    async fn copy_into(&self, from: &GroupId, to: &GroupId) -> Result<()> {
        let (told, mut heard) = watch::channel(0);
        let work = self.backend.copy_files(from, to, move |_, bytes| {
            told.send_replace(bytes);
        });
        tokio::pin!(work);
        let mut open = true;
        let copied = loop {
            tokio::select! {
                copied = &mut work => break copied?,
                changed = heard.changed(), if open => {
                    open = changed.is_ok();
                    let bytes = *heard.borrow_and_update();
                    self.output.progress(Stage::Storing, bytes, None);
                }
            }
        };
        self.output
            .item(Item::Copied {
                group: to.to_string(),
                copied: copied.copied,
                there: copied.there,
                missing: copied.missing,
            })
            .await
    }

    async fn show(&self, id: &GroupId) -> Result<()> {
        for group in self.backend.groups().await {
            if group.id == *id {
                self.output.item(group_item(&group)).await?;
            }
        }
        Ok(())
    }
}
