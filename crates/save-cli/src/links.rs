//! What `group link` does with a link: printing it, drawing it, writing it into a file. That is done by whoever asked, never by a running
//! `save run`.

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::time::Duration;

use save_backend::{Clock as _, Link, SystemClock, UtcTime};

use crate::args::LinkArguments;
use crate::error::{Error, Result};
use crate::export::Export;
use crate::items::{Item, Secret};
use crate::print::Printer;
use crate::qr::Picture;
use crate::sources;

/// What is to be done with a link.
#[derive(Debug)]
pub struct Plan {
    expires: Option<Duration>,
    label: Option<String>,
    qr: bool,
    png: Option<Target>,
    force: bool,
}

#[derive(Debug)]
enum Target {
    File(PathBuf),
    Stdout,
}

impl Plan {
    /// Finds what is wrong with the arguments before anything is asked for.
    ///
    /// # Errors
    /// [`Error::Exists`] for a file in the way without `--force`, [`Error::Usage`] where two things would go to standard output.
    pub fn new(arguments: LinkArguments) -> Result<Self> {
        let LinkArguments {
            expires,
            label,
            qr,
            png,
            force,
            ..
        } = arguments;
        let png = match png {
            Some(file) if file.as_os_str() == "-" => {
                if qr {
                    return Err(Error::Usage(
                        "--qr and --png - would both go to standard output".to_owned(),
                    ));
                }
                Some(Target::Stdout)
            }
            Some(file) => Some(Target::File(sources::destination(
                Some(&file),
                "link.png",
                force,
            )?)),
            None => None,
        };
        Ok(Self {
            expires,
            label,
            qr,
            png,
            force,
        })
    }

    /// Does it with the link that came.
    ///
    /// # Errors
    /// [`Error::TerminalTooNarrow`], [`Error::Exists`], [`Error::File`] and [`Error::Stream`].
    pub fn show(&self, item: Item, printer: &mut Printer) -> Result<()> {
        let Item::Link { group, link, .. } = item else {
            return printer.item(&item);
        };
        let link = self.complete(Link::parse(link.expose())?, SystemClock.now())?;
        if self.qr && !printer.is_json() {
            draw(&link, printer)?;
        } else if self.qr || self.png.is_none() {
            let text = if self.qr {
                link.expose_qr()
            } else {
                link.expose()
            };
            printer.item(&Item::Link {
                group: group.clone(),
                kind: link.kind().to_string(),
                link: Secret::new(text),
                expires: link.expires_at(),
                label: link.label().map(str::to_owned),
            })?;
        }
        if let Some(target) = &self.png {
            self.write(&group, &link, target, printer)?;
        }
        if let Some(at) = link.expires_at() {
            printer.note(&format!(
                "programs refuse the link from {} UTC on; that is no lock, and its keys stay valid",
                UtcTime(at)
            ));
        }
        Ok(())
    }

    /// The link with what was asked for in it.
    fn complete(&self, mut link: Link, now: u64) -> Result<Link> {
        if let Some(label) = &self.label {
            link = link.with_label(label)?;
        }
        if let Some(expires) = self.expires {
            link = link.with_expiry(now.saturating_add(expires.as_secs()))?;
        }
        Ok(link)
    }

    fn write(
        &self,
        group: &str,
        link: &Link,
        target: &Target,
        printer: &mut Printer,
    ) -> Result<()> {
        let picture = Picture::of(link)?.png()?;
        let mut export = match target {
            Target::File(file) => Export::private_file(file.clone(), self.force)?,
            Target::Stdout => Export::Stdout,
        };
        export.write(&picture)?;
        // Standard output must hold nothing but the file.
        if let Some(file) = export.finish(None)? {
            printer.item(&Item::LinkPicture {
                group: group.to_owned(),
                kind: link.kind().to_string(),
                file,
                expires: link.expires_at(),
                label: link.label().map(str::to_owned),
            })?;
        }
        Ok(())
    }
}

fn draw(link: &Link, printer: &mut Printer) -> Result<()> {
    let picture = Picture::of(link)?;
    let terminal = io::stdout().is_terminal();
    if terminal {
        // A line that the terminal breaks makes the code unreadable.
        let columns = rustix::termios::tcgetwinsize(io::stdout()).map_or(0, |size| size.ws_col);
        let (columns, needed) = (usize::from(columns), picture.columns());
        if columns != 0 && columns < needed {
            return Err(Error::TerminalTooNarrow { columns, needed });
        }
    }
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let plain = set("NO_COLOR").is_some() || set("TERM").is_some_and(|term| term == "dumb");
    printer.text(&picture.text(terminal && !plain))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::*;
    use crate::qr::tests::link;

    fn arguments(png: Option<&Path>) -> LinkArguments {
        LinkArguments {
            kind: save_backend::LinkKind::Member,
            expires: None,
            label: None,
            qr: false,
            png: png.map(Path::to_owned),
            force: false,
        }
    }

    fn answer() -> Item {
        Item::Link {
            group: "g".into(),
            kind: "member".into(),
            link: Secret::new(link(0).expose()),
            expires: None,
            label: None,
        }
    }

    #[test]
    fn what_is_asked_for_is_in_the_link() {
        let plan = Plan::new(arguments(None)).unwrap();
        assert_eq!(plan.complete(link(0), 7).unwrap(), link(0));
        let plan = Plan::new(LinkArguments {
            expires: Some(Duration::from_secs(60)),
            label: Some("Ben".into()),
            ..arguments(None)
        });
        let link = plan.unwrap().complete(link(0), 7).unwrap();
        assert_eq!((link.expires_at(), link.label()), (Some(67), Some("Ben")));
    }

    #[test]
    fn a_picture_is_for_its_owner_alone_and_never_overwrites_unasked() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("code.png");
        let mut printer = Printer::new(false);
        let plan = Plan::new(arguments(Some(&file))).unwrap();
        plan.show(answer(), &mut printer).unwrap();
        let first = fs::read(&file).unwrap();
        assert!(first.starts_with(b"\x89PNG"));
        let mode = || fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o600);
        // One that came in the way after the arguments were looked at, and one that was there before.
        assert!(matches!(
            plan.show(answer(), &mut printer),
            Err(Error::Exists { .. })
        ));
        assert!(matches!(
            Plan::new(arguments(Some(&file))),
            Err(Error::Exists { .. })
        ));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let forced = LinkArguments {
            force: true,
            ..arguments(Some(&file))
        };
        let plan = Plan::new(forced).unwrap();
        plan.show(answer(), &mut printer).unwrap();
        assert_eq!(fs::read(&file).unwrap(), first);
        assert_eq!(mode(), 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_gets_the_picture_under_its_usual_name() {
        let directory = tempfile::tempdir().unwrap();
        let plan = Plan::new(arguments(Some(directory.path()))).unwrap();
        plan.show(answer(), &mut Printer::new(false)).unwrap();
        assert!(directory.path().join("link.png").is_file());
    }

    #[test]
    fn two_things_cannot_go_to_standard_output() {
        let both = LinkArguments {
            qr: true,
            ..arguments(Some(Path::new("-")))
        };
        assert!(matches!(Plan::new(both), Err(Error::Usage(_))));
        Plan::new(arguments(Some(Path::new("-")))).unwrap();
    }
}
