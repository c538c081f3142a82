//! What the member said last on its console for which an update of a group failed: it is in the event, so that the reason is
//! there when somebody looks, whatever became of the member.

use std::sync::Arc;
use std::time::Duration;

use lightbyte_api::{Key, Kind, Name, ObjectRef};
use lightbyte_plan::View;
use lightbyte_plan::guest::{self, Way};
use lightbyte_plan::planner::scalegroup;
use tokio::time::timeout;

use crate::Server;
use crate::events::leader_of;
use crate::news::News;

/// How many lines are told: a kernel that panics says why before a trace of a dozen.
const LINES: usize = 16;
/// How much of a line is told.
const LINE_LENGTH_MAX: usize = 160;
/// How much of a console is read.
const BYTES_MAX: usize = 16 << 10;
/// How long its worker may take.
const WITHIN: Duration = Duration::from_secs(3);
/// How many consoles are read at once; of more failures than that, these are told without.
pub(crate) const CONSOLES_MAX: usize = 4;

/// Asks for the last words of those members for which a version was rejected just now.
pub(crate) fn note(server: &Arc<Server>, before: &View, news: &News) {
    // Whoever leads stores it for all.
    if leader_of(&news.view) != Some(&server.name) {
        return;
    }
    let groups = news.changed.iter().filter_map(|key| match key {
        Key::Decided(object) if object.kind == Kind::ScaleGroup => Some(object),
        _ => None,
    });
    for group in groups {
        let failed = failed_member(&news.view, group);
        if failed.is_none() || failed == failed_member(before, group) {
            continue;
        }
        let member = failed.map(|(_, member)| ObjectRef::new(Kind::Vm, member));
        // It may be gone in the view that tells of it.
        let way = member.as_ref().and_then(|member| {
            guest::way_to(&news.view, member).or_else(|_| guest::way_to(before, member)).ok()
        });
        let (Some(member), Some(way)) = (member, way) else { continue };
        let Ok(permit) = Arc::clone(&server.consoles).try_acquire_owned() else { continue };
        let (server, group, revision) = (Arc::clone(server), group.clone(), news.view.revision());
        tokio::spawn(async move {
            let lines = timeout(WITHIN, read(&way)).await.ok().flatten().unwrap_or_default();
            server.events.said(&group, revision, &member.name, &lines);
            drop(permit);
        });
    }
}

/// The version that a group has rejected, and for which member.
fn failed_member(view: &View, group: &ObjectRef) -> Option<(u64, Name)> {
    let rejected = scalegroup::choice(view, group)?.rejected.as_ref()?;
    Some((rejected.version, rejected.member.clone()))
}

async fn read(way: &Way) -> Option<Vec<String>> {
    let path = format!("/v1/vms/{}/logs?follow=false&previous=false&lines={LINES}", way.vm);
    let mut stream = crate::api::guests::client(way).ok()?.bytes(&path).await.ok()?;
    let mut said = Vec::new();
    while let Ok(Some(bytes)) = stream.next().await
        && said.len() < BYTES_MAX
    {
        said.extend_from_slice(&bytes);
    }
    Some(lines(&said))
}

/// The last lines of what a guest said, cut and without anything that a terminal would obey.
fn lines(said: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(said);
    let shown = |line: &str| -> String {
        line.chars().filter(|character| !character.is_control()).take(LINE_LENGTH_MAX).collect()
    };
    let lines: Vec<String> =
        text.lines().map(|line| shown(line.trim_end())).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_commands_no_terminal_and_fills_no_event() {
        assert_eq!(lines(b"a\r\n\n\x1b[2Jb\xff\n"), ["a", "[2Jb\u{fffd}"]);
        assert_eq!(lines("x".repeat(1_000).as_bytes()), ["x".repeat(LINE_LENGTH_MAX)]);
        let many: String = (0..20).map(|line| format!("{line}\n")).collect();
        let told = lines(many.as_bytes());
        assert_eq!(
            (told.len(), told.first(), told.last()),
            (LINES, Some(&"4".to_owned()), Some(&"19".to_owned()))
        );
    }
}
