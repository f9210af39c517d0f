//! The story: create, join, archive, list, read, delete, stop, read without a network, start again.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use devnet::Devnet;
use integration_tests::device::Device;
use serde_json::Value;

use crate::files::{self, Source};
use crate::report::Report;

/// Why the demo failed.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How long a step may take that moves no large file.
const STEP: Duration = Duration::from_secs(90);
/// How long `save run` may take to end.
const STOP: Duration = Duration::from_secs(5);

/// What the demo is asked to do.
pub struct Plan {
    /// Files of the user.
    pub files: Vec<PathBuf>,
    /// The size of the large file in bytes.
    pub large: u64,
}

/// Tells it, or says where it went wrong.
pub async fn tell(plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let begin = Instant::now();
    report.chapter("A Veilid network on this machine");
    let devnet = Devnet::start(devnet::MIN_NODES).await?;
    let text = format!("{} nodes are up", devnet.backbone().len());
    report.step("network", &text, begin.elapsed(), 0);

    let work = devnet.directory().join("demo");
    tokio::fs::create_dir_all(&work).await?;
    let sources = make(plan, work.clone()).await?;
    let mut devices = Vec::new();
    for name in ["Ana", "Ben", "Cleo"] {
        devices.push(Device::new(name, devnet.host(&name.to_lowercase()).await?)?);
    }
    let told = Teller {
        work,
        report,
        devices: &mut devices,
    }
    .tell(&sources)
    .await;
    for device in &mut devices {
        report.memory(device.peak_memory());
    }
    told?;
    drop(devices);
    devnet.stop().await?;
    Ok(())
}

/// Makes the demo's own files, and checks those of the user.
async fn make(plan: &Plan, work: PathBuf) -> Result<Vec<Source>, Failure> {
    let (own, large) = (plan.files.clone(), plan.large);
    tokio::task::spawn_blocking(move || {
        let mut sources = vec![
            source(&work, "notes.txt", "a text"),
            source(&work, "square.png", "a picture"),
            source(&work, "video.bin", &format!("{} MiB of noise", large >> 20)),
        ];
        for (source, make) in sources.iter().zip([
            &files::text as &dyn Fn(&std::path::Path) -> std::io::Result<()>,
            &files::picture,
            &|path| files::noise(path, large),
        ]) {
            make(&source.file)?;
        }
        for (index, file) in own.into_iter().enumerate() {
            let file = std::path::absolute(file)?;
            if !file.is_file() {
                return Err(format!("{} is not a file", file.display()).into());
            }
            let path = files::archive_path(index, &file);
            let title = format!("your {}", file.file_name().unwrap_or_default().display());
            sources.push(Source { file, path, title });
        }
        Ok(sources)
    })
    .await?
}

fn source(work: &std::path::Path, name: &str, title: &str) -> Source {
    Source {
        file: work.join(name),
        path: format!("friday/{name}"),
        title: title.to_owned(),
    }
}

struct Teller<'a> {
    work: PathBuf,
    report: &'a mut Report,
    devices: &'a mut [Device],
}

impl Teller<'_> {
    async fn tell(mut self, sources: &[Source]) -> Result<(), Failure> {
        self.report
            .chapter("Three devices, each a process of its own");
        self.start("start").await?;
        self.report.chapter("A group");
        self.create().await?;
        self.join(1).await?;
        self.join(2).await?;
        self.members().await?;
        self.report.chapter("Ana archives");
        for source in sources {
            self.put(source).await?;
        }
        self.report.chapter("Ben and Cleo read");
        for reader in [1, 2] {
            self.list(reader, sources).await?;
        }
        for source in sources {
            for reader in [1, 2] {
                self.read(reader, source, "first").await?;
            }
        }
        self.report.chapter("Ana deletes");
        let (deleted, kept) = sources.split_first().ok_or("there is no file")?;
        self.delete(deleted).await?;
        for reader in [1, 2] {
            self.gone(reader, deleted, kept).await?;
        }
        self.report.chapter("All stop");
        self.stop().await?;
        self.report
            .chapter("Ben pulls the plug of his network, and reads again");
        self.offline(1, kept).await?;
        self.report.chapter("All start again");
        self.start("restart").await?;
        self.members().await?;
        for reader in [1, 2] {
            self.list(reader, kept).await?;
            for source in kept {
                self.read(reader, source, "again").await?;
            }
        }
        self.stop().await
    }

    fn device(&self, index: usize) -> Result<&Device, Failure> {
        Ok(self.devices.get(index).ok_or("there is no such device")?)
    }

    async fn start(&mut self, name: &str) -> Result<(), Failure> {
        let begin = Instant::now();
        // One after the other: a child belongs to the thread that starts it, and this future is the main thread's.
        for device in self.devices.iter_mut() {
            device.start(STEP).await?;
        }
        for device in self.devices.iter_mut() {
            device.online(STEP).await?;
        }
        let text = "Ana, Ben and Cleo are online";
        self.report.step(name, text, begin.elapsed(), 0);
        Ok(())
    }

    async fn create(&mut self) -> Result<(), Failure> {
        let begin = Instant::now();
        let lines = self
            .device(0)?
            .save(&["group", "create", "Press pool", "--as", "Ana"])
            .await?;
        published(&lines)?;
        let text = "Ana creates the group 'Press pool', and it is published";
        self.report.step("create", text, begin.elapsed(), 0);
        Ok(())
    }

    async fn join(&mut self, index: usize) -> Result<(), Failure> {
        let begin = Instant::now();
        let lines = self.device(0)?.save(&["group", "link"]).await?;
        let link = lines
            .iter()
            .find_map(|line| line["link"].as_str())
            .ok_or("there is no link")?;
        let device = self.device(index)?;
        let joined = ["group", "join", "-", "--as", device.name()];
        let lines = device.save_with(&joined, Some(link)).await?;
        published(&lines)?;
        let text = format!("{} joins by Ana's link", device.name());
        self.report.step("join", &text, begin.elapsed(), 0);
        Ok(())
    }

    async fn members(&mut self) -> Result<(), Failure> {
        let begin = Instant::now();
        for device in self.devices.iter() {
            let all = |lines: &[Value]| {
                ["Ana", "Ben", "Cleo"]
                    .iter()
                    .all(|name| lines.iter().any(|line| line["name"] == *name))
            };
            device
                .until(&["members", "--refresh"], "seeing all members", STEP, all)
                .await?;
        }
        let text = "everybody sees Ana, Ben and Cleo";
        self.report.step("members", text, begin.elapsed(), 0);
        Ok(())
    }

    async fn put(&mut self, source: &Source) -> Result<(), Failure> {
        let begin = Instant::now();
        let file = source.file.to_string_lossy();
        let lines = self
            .device(0)?
            .save(&["put", &*file, "--path", &source.path])
            .await?;
        published(&lines)?;
        let text = format!("Ana archives {} as {}", source.title, source.path);
        self.report.step("put", &text, begin.elapsed(), 0);
        Ok(())
    }

    async fn list(&mut self, reader: usize, sources: &[Source]) -> Result<(), Failure> {
        let begin = Instant::now();
        let device = self.device(reader)?;
        let all = |lines: &[Value]| sources.iter().all(|source| has(lines, &source.path));
        device
            .until(&["ls", "--refresh"], "seeing all files", STEP, all)
            .await?;
        let text = format!("{} sees {} files", device.name(), sources.len());
        self.report.step("list", &text, begin.elapsed(), 0);
        Ok(())
    }

    async fn read(&mut self, reader: usize, source: &Source, time: &str) -> Result<(), Failure> {
        let device = self.device(reader)?;
        let text = format!(
            "{} reads {}: every byte is the same",
            device.name(),
            source.title
        );
        let (took, bytes) = self.fetch(device, source, &[]).await?;
        self.report
            .step(&format!("read-{time}"), &text, took, bytes);
        Ok(())
    }

    /// Reads a file and compares it; the comparison does not count to the time.
    async fn fetch(
        &self,
        device: &Device,
        source: &Source,
        options: &[&str],
    ) -> Result<(Duration, u64), Failure> {
        let target = self.work.join(format!("read-by-{}", device.name()));
        let output = target.to_string_lossy();
        let begin = Instant::now();
        let mut arguments = vec!["get", source.path.as_str(), "-o", &*output, "--from", "Ana"];
        arguments.extend(options);
        device.save(&arguments).await?;
        let took = begin.elapsed();
        let (original, copy) = (source.file.clone(), target.clone());
        let compared =
            tokio::task::spawn_blocking(move || files::compare(&original, &copy)).await?;
        tokio::fs::remove_file(&target).await?;
        match compared? {
            Ok(bytes) => Ok((took, bytes)),
            Err(at) => Err(format!(
                "{} read {} and it differs from byte {at} on",
                device.name(),
                source.path
            )
            .into()),
        }
    }

    async fn delete(&mut self, source: &Source) -> Result<(), Failure> {
        let begin = Instant::now();
        let lines = self.device(0)?.save(&["rm", &source.path]).await?;
        published(&lines)?;
        let text = format!("Ana deletes {}", source.title);
        self.report.step("delete", &text, begin.elapsed(), 0);
        Ok(())
    }

    async fn gone(
        &mut self,
        reader: usize,
        deleted: &Source,
        kept: &[Source],
    ) -> Result<(), Failure> {
        let begin = Instant::now();
        let device = self.device(reader)?;
        let wanted = |lines: &[Value]| {
            !has(lines, &deleted.path) && kept.iter().all(|source| has(lines, &source.path))
        };
        device
            .until(&["ls", "--refresh"], "seeing the file gone", STEP, wanted)
            .await?;
        let text = format!("{} sees it gone, and the others still there", device.name());
        self.report.step("gone", &text, begin.elapsed(), 0);
        Ok(())
    }

    async fn stop(&mut self) -> Result<(), Failure> {
        let begin = Instant::now();
        let mut times = Vec::new();
        for device in self.devices.iter_mut() {
            let took = device.stop(STOP).await?.as_secs_f64();
            times.push(format!("{} in {took:.1} s", device.name()));
        }
        let text = format!("SIGTERM stops {}", times.join(", "));
        self.report.step("stop", &text, begin.elapsed(), 0);
        Ok(())
    }

    async fn offline(&mut self, reader: usize, kept: &[Source]) -> Result<(), Failure> {
        let device = self.device(reader)?;
        device.host().cut_off().await?;
        let name = device.name().to_owned();
        let begin = Instant::now();
        let groups = device.save(&["group", "list", "--offline"]).await?;
        let members = device.save(&["members", "--offline"]).await?;
        let listed = device.save(&["ls", "--offline"]).await?;
        let known = groups.iter().any(|line| line["name"] == "Press pool")
            && members.len() == 3
            && kept.iter().all(|source| has(&listed, &source.path));
        if !known {
            return Err(format!("{name} has forgotten the group, its members or its files").into());
        }
        let text = format!("{name} still knows the group, its members and its files");
        self.report.step("offline", &text, begin.elapsed(), 0);
        for source in kept {
            let (took, bytes) = self
                .fetch(self.device(reader)?, source, &["--offline"])
                .await?;
            let text = format!("{name} reads {} without a network", source.title);
            self.report.step("read-offline", &text, took, bytes);
        }
        self.device(reader)?.host().rejoin().await?;
        Ok(())
    }
}

/// Whether a file is in the list of files.
fn has(lines: &[Value], path: &str) -> bool {
    lines.iter().any(|line| line["path"] == path)
}

/// A change has to be published, not only stored.
fn published(lines: &[Value]) -> Result<(), Failure> {
    match lines.iter().find(|line| line["type"] == "publication") {
        Some(line) if line["published"] == true => Ok(()),
        Some(line) => Err(format!("it was not published: {}", line["reason"]).into()),
        None => Err("nothing says whether it was published".into()),
    }
}
