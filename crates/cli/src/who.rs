//! Who types: what is said to servers, and shown in events with what was asked. Nothing proves it.

use lightbyte_api::Who;

/// What people may call themselves in place of user and machine: for scripts that act for somebody.
pub(crate) const WHO_VARIABLE: &str = "LIGHTBYTE_WHO";

/// `LIGHTBYTE_WHO`, or else the user and the machine; nothing when neither has a character that may be in it.
pub(crate) fn is_here() -> Option<Who> {
    let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    if let Some(said) = variable(WHO_VARIABLE) {
        return Who::nearest(&said);
    }
    let user = variable("USER").or_else(|| variable("LOGNAME"));
    let user = user.unwrap_or_else(|| format!("user-{}", rustix::process::getuid().as_raw()));
    let machine = rustix::system::uname();
    Who::nearest(&format!("{user}@{}", machine.nodename().to_string_lossy()))
}
