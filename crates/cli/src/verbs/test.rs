//! `lightbyte test`: where a load balancer would send a request, and why, by the word of each of its proxies.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use lightbyte_api::explain::{Answer, By, Candidate, Candidates, Explained, Question, Tested};
use lightbyte_api::topology::Protocol;
use lightbyte_api::{Kind, Name, ObjectRef};

use crate::arguments;
use crate::cluster::Cluster;
use crate::failure::{Code, Failure};
use crate::target;
use crate::terminal::print;

pub(crate) async fn run(cluster: &Cluster, words: &arguments::Test) -> Result<Code> {
    let object = target::read_of(Kind::LoadBalancer, &words.target)?;
    let question = question(words)?;
    let tested = cluster.test(&object, &question).await.with_context(|| format!("test {object}"))?;
    print(&render(&object, &tested))?;
    let is_served = |explained: &Explained| match &explained.answer {
        Answer::Forwards { pools, .. } => pools.iter().any(|pool| !pool.backends.is_empty()),
        Answer::Redirects { .. } | Answer::Proves => true,
        Answer::NotListening | Answer::Speaks { .. } | Answer::NoRoute => false,
    };
    let is_served = tested.proxies.iter().any(|proxy| proxy.explained.as_ref().is_some_and(is_served));
    Ok(if is_served { Code::Done } else { Code::Differs })
}

/// The request of a URL.
fn question(words: &arguments::Test) -> Result<Question, Failure> {
    let url = words.url.as_str();
    let wrong = || Failure::usage(format!("`{url}` is no URL such as http://shop.example.org/api"));
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let (protocol, default_port) = match scheme {
        "http" => (Protocol::Http, 80),
        "https" => (Protocol::Https, 443),
        _ => return Err(wrong()),
    };
    let (host, path) = rest.find(['/', '?']).map_or((rest, "/"), |slash| rest.split_at(slash));
    if host.is_empty() || host.contains(char::is_whitespace) {
        return Err(wrong());
    }
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    // An address of IPv6 stands in brackets.
    let named = host.rsplit_once(':').filter(|(_, port)| !port.contains(']'));
    let port = named.map_or(Ok(default_port), |(_, port)| port.parse()).map_err(|_| wrong())?;
    let header = |text: &String| {
        let pair =
            text.split_once(':').map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()));
        pair.ok_or_else(|| Failure::usage(format!("`{text}` is no header such as `cookie: a=b`")))
    };
    let mut headers: BTreeMap<String, String> = BTreeMap::new();
    for text in &words.headers {
        let (name, value) = header(text)?;
        let name = name.to_ascii_lowercase();
        // Several of one name are one list (RFC 9110, 5.3); cookies have a list of their own.
        let between = if name == "cookie" { "; " } else { ", " };
        headers.entry(name).and_modify(|list| *list = format!("{list}{between}{value}")).or_insert(value);
    }
    let path = path.split('#').next().unwrap_or("/").to_owned();
    Ok(Question {
        protocol,
        port,
        method: words.method.clone(),
        host: host.to_owned(),
        path,
        headers,
        source: words.from,
    })
}

/// What proxies would do, those that would do the same together.
fn render(object: &ObjectRef, tested: &Tested) -> String {
    let mut alike: Vec<(&Explained, Vec<&Name>)> = Vec::new();
    for proxy in &tested.proxies {
        let Some(explained) = &proxy.explained else { continue };
        match alike.iter_mut().find(|(other, _)| *other == explained) {
            Some((_, proxies)) => proxies.push(&proxy.vm),
            None => alike.push((explained, vec![&proxy.vm])),
        }
    }
    let mut text = String::new();
    if tested.proxies.is_empty() {
        let _ = writeln!(text, "{object} has no proxy yet");
    }
    for (explained, proxies) in alike {
        let names = proxies.iter().map(ToString::to_string).collect::<Vec<String>>().join(", ");
        let _ = writeln!(text, "{names} (revision {}): {}", explained.revision, words(&explained.answer));
    }
    for proxy in &tested.proxies {
        if let Some(problem) = &proxy.problem {
            let _ = writeln!(text, "{}: does not say: {problem}", proxy.vm);
        }
    }
    text
}

fn words(answer: &Answer) -> String {
    match answer {
        Answer::NotListening => "nobody listens at this port".to_owned(),
        Answer::Speaks { protocol } => format!("this port speaks {}", protocol.scheme()),
        Answer::NoRoute => "404, no route fits".to_owned(),
        Answer::Proves => "the proof for the certification authority that asks for it".to_owned(),
        Answer::Redirects { route: None, status, location } => {
            format!("{status} to {location}, as its listener says")
        }
        Answer::Redirects { route: Some(route), status, location } => {
            format!("{status} to {location}, by route `{route}`")
        }
        Answer::Forwards { route, pools, .. } if pools.iter().all(|pool| pool.backends.is_empty()) => {
            format!("503, by route `{route}`: nobody is in its pools")
        }
        Answer::Forwards { route, path, pools } => {
            let mut text = format!("route `{route}` asks for {path} of");
            for pool in pools {
                text.push_str(&of_pool(pool));
            }
            text
        }
    }
}

const fn how(by: By) -> &'static str {
    match by {
        By::Turn => "in turn",
        By::Load => "the one with the fewest requests in flight",
        By::Hash => "always the same one for the same key",
        By::Cookie => "the one that its cookie names",
    }
}

fn of_pool(pool: &Candidates) -> String {
    let share = if pool.percent == 100 { String::new() } else { format!(" ({} %)", pool.percent) };
    let backend = |backend: &Candidate| {
        let name = backend.vm.as_ref().map_or_else(|| backend.uid.clone(), ToString::to_string);
        let because =
            if backend.because.is_empty() { String::new() } else { format!(": {}", backend.because) };
        let mark = if backend.might_be_asked { '>' } else { ' ' };
        format!("\n  {mark} {name} at {} is {}{because}", backend.address, backend.health)
    };
    let backends: String = pool.backends.iter().map(backend).collect();
    let untold = if pool.untold > 0 { format!("\n    and {} more", pool.untold) } else { String::new() };
    format!("\n  pool `{}`{share}, {}:{backends}{untold}", pool.pool, how(pool.by))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(url: &str) -> String {
        let words = arguments::Test {
            target: "lb/web".to_owned(),
            url: url.to_owned(),
            method: "GET".to_owned(),
            headers: vec!["Cookie: a=b".to_owned(), "cookie: c=d".to_owned()],
            from: None,
        };
        match question(&words) {
            Ok(Question { port, host, path, headers, .. }) => {
                assert_eq!(headers, [("cookie".to_owned(), "a=b; c=d".to_owned())].into());
                format!("{host} {port} {path}")
            }
            Err(failure) => failure.to_string(),
        }
    }

    #[test]
    fn a_url_says_the_port_the_host_and_the_path() {
        let check = |url: &str, expected: &str| assert_eq!(asked(url), expected, "{url}");
        check("http://shop.example.org", "shop.example.org 80 /");
        check("https://shop.example.org/a?b=c#d", "shop.example.org 443 /a?b=c");
        check("shop.example.org:8080?x", "shop.example.org:8080 8080 /?x");
        check("http://[fd00::1]/", "[fd00::1] 80 /");
        check("http://[fd00::1]:81/", "[fd00::1]:81 81 /");
        for url in ["ftp://shop", "http:///a", "http://shop:x/", "http://a b/"] {
            assert!(asked(url).contains("is no URL"), "{url}: {}", asked(url));
        }
    }
}
