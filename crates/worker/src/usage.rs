//! What this host and its guests use, told when a server asks: measured then, kept nowhere.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use futures::{StreamExt as _, stream};
use lightbyte_api::VmId;
use lightbyte_api::wire::{Measure, Measured, MeasuredVm, Usage};
use lightbyte_guest::proc::{CpuMillis, cpu_millis, memory_bytes};
use lightbyte_link::Problem;
use lightbyte_vmm::{DriverError, Drivers, carried, metrics};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

/// How long a guest's agent may take to say what it uses.
const GUEST_WITHIN: Duration = Duration::from_secs(1);
/// How many guests are asked at once; each holds a thread.
const GUESTS_AT_ONCE_MAX: usize = 64;
/// How long all of them may take, so that those that are silent do not keep the others from being told: less than any
/// server waits.
const ALL_WITHIN: Duration = Duration::from_millis(1_500);
/// How many are answered at once of those who ask of certain VMs, which the leader does, and of those who ask of all, which
/// each server does for its people: nobody who looks takes the leader's place.
const ANSWERS_AT_ONCE_MAX: usize = 3;
/// How many guests are asked for one answer: more than any host has.
const GUESTS_MAX: usize = 1_000;

struct Meter {
    drivers: Drivers,
    of_some: Semaphore,
    of_all: Semaphore,
}

pub(crate) fn router(drivers: Drivers) -> Router {
    let places = || Semaphore::new(ANSWERS_AT_ONCE_MAX);
    let meter = Meter { drivers, of_some: places(), of_all: places() };
    Router::new().route("/v1/usage", post(usage)).with_state(Arc::new(meter))
}

/// `POST /v1/usage`
async fn usage(
    State(meter): State<Arc<Meter>>,
    Json(wanted): Json<Measure>,
) -> Result<Json<Measured>, Problem> {
    let places = if wanted.vms.is_empty() { &meter.of_all } else { &meter.of_some };
    let _place = places.try_acquire().map_err(|_| {
        let title = format!("this worker measures for {ANSWERS_AT_ONCE_MAX} others already");
        Problem::new(StatusCode::TOO_MANY_REQUESTS, title)
    })?;
    let proxies: BTreeSet<VmId> = wanted.proxies.into_iter().take(GUESTS_MAX).collect();
    let vms = match wanted.vms {
        vms if vms.is_empty() => blocking(&meter, |drivers| drivers.vmm.list()).await?,
        vms => vms,
    };
    let of_one = |vm| of_guest(&meter, vm, proxies.contains(&vm));
    let measured = stream::iter(vms.into_iter().take(GUESTS_MAX)).map(of_one);
    let mut measured = measured.buffer_unordered(GUESTS_AT_ONCE_MAX);
    let (until, mut vms) = (Instant::now() + ALL_WITHIN, Vec::new());
    while let Ok(Some(found)) = timeout_at(until, measured.next()).await {
        vms.extend(found);
    }
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let host = of_host(&read("/proc/stat"), &read("/proc/meminfo"));
    Ok(Json(Measured { host, vms }))
}

async fn of_guest(meter: &Meter, vm: VmId, is_proxy: bool) -> Option<MeasuredVm> {
    // One that does not answer is left out, and whoever asks sees that it is.
    let asked = blocking(meter, move |drivers| {
        let said = metrics(drivers.guest.as_ref(), vm, GUEST_WITHIN)?;
        // A proxy may be silent while its guest is not.
        let carried = if is_proxy { carried(drivers.guest.as_ref(), vm, GUEST_WITHIN).ok() } else { None };
        Ok((said, carried))
    });
    let (said, carried) = asked.await.ok()?;
    let usage = Usage {
        cpu_busy_millis: said.cpu_busy_millis,
        cpu_idle_millis: said.cpu_idle_millis,
        memory_total_bytes: said.memory_total_bytes,
        memory_available_bytes: said.memory_available_bytes.min(said.memory_total_bytes),
    };
    Some(MeasuredVm { vm, usage, carried })
}

async fn blocking<T: Send + 'static>(
    meter: &Meter,
    question: impl FnOnce(&Drivers) -> Result<T, DriverError> + Send + 'static,
) -> Result<T, Problem> {
    let drivers = meter.drivers.clone();
    let bad = |words: String| Problem::new(StatusCode::BAD_GATEWAY, words);
    let answer = spawn_blocking(move || question(&drivers)).await;
    answer.map_err(|panic| bad(format!("the driver failed: {panic}")))?.map_err(|error| bad(error.chain()))
}

/// What cannot be read is nought.
fn of_host(stat: &str, meminfo: &str) -> Usage {
    let CpuMillis { busy, idle, stolen } = cpu_millis(stat);
    let bytes = |name| memory_bytes(meminfo, name).unwrap_or(0);
    Usage {
        // A host that is a VM itself wanted what was taken away.
        cpu_busy_millis: busy.saturating_add(stolen),
        cpu_idle_millis: idle,
        memory_total_bytes: bytes("MemTotal"),
        memory_available_bytes: bytes("MemAvailable"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_of_the_host_are_read() {
        let usage = of_host("cpu  10 1 5 900 4 2 3 50 7 0\n", "MemTotal: 8 kB\nMemAvailable: 3 kB\n");
        let expect = Usage {
            cpu_busy_millis: 710,
            cpu_idle_millis: 9_040,
            memory_total_bytes: 8_192,
            memory_available_bytes: 3_072,
        };
        assert_eq!(usage, expect);
        assert_eq!(of_host("", "x"), Usage::default());
    }
}
