//! A group that says itself how many members it has: by their load, by the clock, within bounds.

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use serde::{Deserialize, Serialize};

use super::{REPLICAS_MAX, SPAN_MAX, Share};
use crate::reader::Reader;
use crate::units::Span;

/// The longest time that load is looked back at.
pub const WINDOW_MAX: Span = Span::from_secs(60 * 60);
/// The shortest time between two steps: sooner nothing new is known.
pub const EVERY_MIN: Span = Span::from_secs(15);
/// The most schedules of one group.
pub const SCHEDULES_MAX: usize = 16;
/// The shortest time that a schedule lasts: patterns know no seconds.
pub const LASTS_MIN: Span = Span::from_secs(60);
/// The longest time that a schedule lasts.
pub const LASTS_MAX: Span = Span::from_secs(31 * 24 * 60 * 60);
/// The CPU targets that leave a measurable distance to idle and to saturated members, in hundredths.
const CPU_RANGE: std::ops::RangeInclusive<u64> = 10..=90;
/// The most requests in a second, or in flight, that one member can be said to take.
const REQUESTS_MAX: u64 = 1_000_000;

/// A policy of how many members a group has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Autoscale {
    /// The fewest members.
    pub min: u64,
    /// The most members.
    pub max: u64,
    /// How busy members' CPUs are to be on average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Percent>,
    /// How many requests of load balancers each member is to answer in a second, on average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<u64>,
    /// How many requests of load balancers each member is to have in flight at once, on average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u64>,
    /// How members are added when the load grows.
    #[serde(default = "Rate::out")]
    pub scale_out: Rate,
    /// How members are let go when the load falls.
    #[serde(default = "Rate::inwards")]
    pub scale_in: Rate,
    /// Times when there are more members at least.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schedules: Vec<Schedule>,
}

impl Autoscale {
    /// Whether it goes by what members use, or by what is sent to them.
    #[must_use]
    pub const fn is_by_load(&self) -> bool {
        self.cpu.is_some() || self.is_by_requests()
    }

    /// Whether it goes by what load balancers send to members.
    #[must_use]
    pub const fn is_by_requests(&self) -> bool {
        self.requests_per_second.is_some() || self.concurrency.is_some()
    }
}

/// How fast a group follows its load in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// For how long the load must have asked for a change: the least change that it asked for meanwhile is made.
    pub window: Span,
    /// The largest step, as a part of the members that there are; one member always may.
    pub at_most: Share,
    /// How long after a step the next one comes at the earliest.
    pub every: Span,
}

impl Rate {
    /// Out when left out.
    #[must_use]
    pub const fn out() -> Rate {
        Rate { window: Span::from_secs(30), at_most: Share::Percent(100), every: Span::from_secs(30) }
    }

    /// In when left out: members are cheaper than requests that fail.
    #[must_use]
    pub const fn inwards() -> Rate {
        Rate { window: Span::from_secs(300), at_most: Share::Percent(50), every: Span::from_secs(60) }
    }

    /// The largest step from `count` members, at most [`REPLICAS_MAX`].
    #[must_use]
    pub fn step_from(&self, count: u64) -> u64 {
        let step = match self.at_most {
            Share::Count(step) => step,
            Share::Percent(_) => self.at_most.of(count),
        };
        step.clamp(1, REPLICAS_MAX)
    }
}

/// A time that comes again and again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// When it begins.
    pub cron: Cron,
    /// How long it lasts.
    pub lasts: Span,
    /// The time zone of `cron`.
    #[serde(default)]
    pub time_zone: Zone,
    /// The fewest members meanwhile.
    pub min: u64,
}

impl Schedule {
    /// Whether it is on at `now`.
    #[must_use]
    pub fn is_on(&self, now: Timestamp) -> bool {
        self.ends(now).is_some()
    }

    /// When what is on at `now` ends, if it is on.
    fn ends(&self, now: Timestamp) -> Option<Timestamp> {
        let begun = self.cron.pattern()?.find_previous_occurrence(&self.at(now)?, true).ok()?;
        let ends = begun.timestamp().checked_add(self.lasts.duration()).ok()?;
        (now < ends).then_some(ends)
    }

    /// When it is next to be looked at: when it ends, or begins. `None` when it never begins again.
    #[must_use]
    pub fn next_change(&self, now: Timestamp) -> Option<Timestamp> {
        self.ends(now).or_else(|| {
            let begins = self.cron.pattern()?.find_next_occurrence(&self.at(now)?, false);
            begins.ok().map(|begins| begins.timestamp())
        })
    }

    fn at(&self, now: Timestamp) -> Option<Zoned> {
        Some(now.to_zoned(self.time_zone.zone()?))
    }
}

/// A pattern of times: minute, hour, day of month, month, day of week, as crontab(5) has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cron(String);

impl Cron {
    fn parse(text: &str) -> Result<croner::Cron, croner::errors::CronError> {
        use croner::parser::{CronParser, Seconds, Year};
        CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build().parse(text)
    }

    /// It was read before it was let in, so it is there.
    fn pattern(&self) -> Option<croner::Cron> {
        Cron::parse(&self.0).ok()
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Cron {
    type Error = String;
    fn try_from(text: String) -> Result<Cron, String> {
        match Cron::parse(&text) {
            // It would be searched for in all years to come, time and again.
            Ok(pattern) if pattern.find_next_occurrence(&Zoned::default(), false).is_err() => {
                Err(format!("`{text}` never comes"))
            }
            Ok(_) => Ok(Cron(text)),
            Err(error) => Err(format!("`{text}` is no pattern such as 0 8 * * mon-fri: {error}")),
        }
    }
}

impl From<Cron> for String {
    fn from(cron: Cron) -> String {
        cron.0
    }
}

/// A time zone of the IANA database, such as Europe/Amsterdam. The database is part of the program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Zone(String);

impl Zone {
    fn zone(&self) -> Option<TimeZone> {
        TimeZone::get(&self.0).ok()
    }

    /// The name as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Zone {
    fn default() -> Zone {
        Zone("UTC".to_owned())
    }
}

impl TryFrom<String> for Zone {
    type Error = String;
    fn try_from(text: String) -> Result<Zone, String> {
        match TimeZone::get(&text) {
            Ok(_) => Ok(Zone(text)),
            Err(_) => Err(format!("`{text}` is no time zone such as Europe/Amsterdam or UTC")),
        }
    }
}

impl From<Zone> for String {
    fn from(zone: Zone) -> String {
        zone.0
    }
}

/// So many of a hundred, as people write it: `60%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Percent(pub u64);

impl TryFrom<String> for Percent {
    type Error = String;
    fn try_from(text: String) -> Result<Percent, String> {
        let percent = text.strip_suffix('%').and_then(|digits| digits.parse().ok());
        let percent = percent.filter(|percent| (1..=100).contains(percent));
        percent.map(Percent).ok_or_else(|| format!("`{text}` is not 1% to 100%"))
    }
}

impl From<Percent> for String {
    fn from(percent: Percent) -> String {
        format!("{}%", percent.0)
    }
}

/// How many members a group has by its policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scaling {
    /// How many.
    pub desired: u64,
    /// Since when.
    pub changed_at: Timestamp,
    /// Why, in words.
    pub because: String,
}

pub(super) fn read(fields: &mut Reader<'_>) -> Option<Autoscale> {
    let min = fields.number("min", 1..=REPLICAS_MAX, 1);
    let max = fields.required::<u64>("max");
    let cpu: Option<Percent> = fields.optional("cpu");
    let mut requests = |name: &'static str| {
        let count = fields.optional::<u64>(name)?;
        if !(1..=REQUESTS_MAX).contains(&count) {
            fields.problem(name, format!("must be between 1 and {REQUESTS_MAX}, is {count}"), None);
        }
        Some(count)
    };
    let (requests_per_second, concurrency) = (requests("requests_per_second"), requests("concurrency"));
    let scale_out = fields.object("scale_out", |fields| read_rate(fields, Rate::out()));
    let scale_in = fields.object("scale_in", |fields| read_rate(fields, Rate::inwards()));
    let schedules = fields.list("schedules", SCHEDULES_MAX, read_schedule);
    if !["cpu", "requests_per_second", "concurrency", "schedules"].iter().any(|name| fields.has(name)) {
        let hint = "such as cpu: 60%, requests_per_second: 100, concurrency: 20, or schedules".to_owned();
        fields.problem("cpu", "is missing, and nothing else says how many members there are to be", Some(hint));
    }
    if let Some(Percent(percent)) = cpu.filter(|cpu| !CPU_RANGE.contains(&cpu.0)) {
        let (low, high) = (CPU_RANGE.start(), CPU_RANGE.end());
        fields.problem("cpu", format!("must be between {low}% and {high}%, is {percent}%"), None);
    }
    let max = max?;
    if !(min..=REPLICAS_MAX).contains(&max) {
        fields.problem("max", format!("must be between `min`, which is {min}, and {REPLICAS_MAX}, is {max}"), None);
    }
    let schedules = schedules.unwrap_or_default();
    for (index, schedule) in schedules.iter().enumerate().filter(|(_, schedule)| schedule.min > max) {
        let message = format!("must be at most `max`, which is {max}, is {}", schedule.min);
        fields.problem(&format!("schedules[{index}].min"), message, None);
    }
    let (scale_out, scale_in) = (scale_out.unwrap_or(Rate::out()), scale_in.unwrap_or(Rate::inwards()));
    Some(Autoscale { min, max, cpu, requests_per_second, concurrency, scale_out, scale_in, schedules })
}

fn read_rate(fields: &mut Reader<'_>, default: Rate) -> Option<Rate> {
    let rate = Rate {
        window: fields.span("window", Span::from_secs(0)..=WINDOW_MAX, default.window),
        at_most: fields.or("at_most", default.at_most),
        every: fields.span("every", EVERY_MIN..=SPAN_MAX, default.every),
    };
    if rate.at_most == Share::Count(0) {
        fields.problem("at_most", "must be at least 1", None);
    }
    Some(rate)
}

fn read_schedule(fields: &mut Reader<'_>) -> Option<Schedule> {
    let cron = fields.required("cron");
    if !fields.has("lasts") {
        fields.problem("lasts", "is missing", Some("such as lasts: 10h".to_owned()));
    }
    let lasts = fields.span("lasts", LASTS_MIN..=LASTS_MAX, LASTS_MIN);
    let time_zone = fields.or("time_zone", Zone::default());
    let min = fields.required::<u64>("min")?;
    if !(1..=REPLICAS_MAX).contains(&min) {
        fields.problem("min", format!("must be between 1 and {REPLICAS_MAX}, is {min}"), None);
    }
    Some(Schedule { cron: cron?, lasts, time_zone, min })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `on until` or `off until`, for each moment.
    fn check(cron: &str, lasts: u64, zone: &str, moments: &[(&str, &str)]) {
        let schedule = Schedule {
            cron: cron.to_owned().try_into().expect("a pattern"),
            lasts: Span::from_secs(lasts * 3_600),
            time_zone: zone.to_owned().try_into().expect("a zone"),
            min: 1,
        };
        for (moment, expect) in moments {
            let now: Timestamp = moment.parse().expect("a time");
            let state = if schedule.is_on(now) { "on" } else { "off" };
            let next = schedule.next_change(now).map_or_else(|| "ever".to_owned(), |at| at.to_string());
            assert_eq!(format!("{state} until {next}"), *expect, "{cron} for {lasts} h in {zone} at {moment}");
        }
    }

    #[test]
    fn a_schedule_is_on_from_its_pattern_for_as_long_as_it_lasts() {
        check("0 8 * * mon-fri", 10, "UTC", &[
            ("2026-11-27T07:59:59Z", "off until 2026-11-27T08:00:00Z"),
            ("2026-11-27T08:00:00Z", "on until 2026-11-27T18:00:00Z"),
            ("2026-11-27T17:59:59.999Z", "on until 2026-11-27T18:00:00Z"),
            ("2026-11-27T18:00:00Z", "off until 2026-11-30T08:00:00Z"),
        ]);
        // Over midnight.
        check("0 22 * * *", 4, "UTC", &[("2026-11-28T01:00:00Z", "on until 2026-11-28T02:00:00Z")]);
        // It begins anew before it ends.
        check("0 * * * *", 2, "UTC", &[("2026-11-28T01:30:00Z", "on until 2026-11-28T03:00:00Z")]);
    }

    #[test]
    fn a_schedule_goes_by_the_clock_of_its_zone() {
        // Amsterdam is one hour ahead in winter, two in summer.
        check("0 8 * * *", 1, "Europe/Amsterdam", &[
            ("2026-11-27T07:30:00Z", "on until 2026-11-27T08:00:00Z"),
            ("2026-07-27T06:30:00Z", "on until 2026-07-27T07:00:00Z"),
        ]);
        // 02:30 does not exist on the night when the clock goes ahead: it begins when that hour is left out.
        check("30 2 * * *", 1, "Europe/Amsterdam", &[(
            "2026-03-28T12:00:00Z",
            "off until 2026-03-29T01:00:00Z",
        )]);
    }

    #[test]
    fn nonsense_is_no_pattern() {
        for text in ["", "0 8 * *", "61 * * * *", "0 0 8 * * *", "0 8 * * mon-fri 2027", "0 0 31 2 *", "hello"] {
            assert!(Cron::try_from(text.to_owned()).is_err(), "{text}");
        }
        for text in ["", "Mars/Base", "../etc/passwd"] {
            assert!(Zone::try_from(text.to_owned()).is_err(), "{text}");
        }
        for text in ["60", "0%", "101%", "a%", "%"] {
            assert!(Percent::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
