//! The demo image's page on port 80: who this VM is and how long its boot took. Served if the kernel's command line has
//! the word `lightbyte.page`.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::spawn_local;

use crate::agent::Agent;
use crate::boot::word_of_command_line;
use crate::serve::{ACCEPT_PAUSE, CONNECTIONS_MAX, builder};

/// The page's port.
const PAGE_PORT: u16 = 80;

/// The word of the kernel's command line that asks for it.
const PAGE_WORD: &str = "lightbyte.page";

/// Serves the page for ever, where it is wanted.
pub(crate) async fn serve(agent: Rc<Agent>) {
    if word_of_command_line(PAGE_WORD).is_none_or(|rest| !rest.is_empty()) {
        return;
    }
    // Both families by one socket.
    let address = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), PAGE_PORT);
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(error) => {
            println!("lightbyte-guest: listen on port {PAGE_PORT}: {error}");
            return;
        }
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let agent = agent.clone();
        spawn_local(async move {
            let service = service_fn(move |_: Request<Incoming>| {
                let page = page(&agent);
                async move { Ok::<_, Infallible>(page) }
            });
            // One that has said all that it wants to may still listen, as `nc` does when its input ends.
            let _ = builder().half_close(true).serve_connection(TokioIo::new(stream), service).await;
            drop(place);
        });
    }
}

fn page(agent: &Agent) -> Response<Full<Bytes>> {
    let identity = agent.identity.borrow().clone().unwrap_or_default();
    let boot = agent.milestones();
    let ms = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value} ms"));
    let text = format!(
        "hello from {}\n\nworker         {}\nimage          {}\nimage version  {}\nkernel         {}\ninit           {}\nready          {}\nnetwork        {}\n",
        identity.name,
        identity.worker,
        identity.image,
        identity.image_version,
        ms(boot.kernel),
        ms(boot.init),
        ms(boot.ready),
        ms(boot.network),
    );
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}
