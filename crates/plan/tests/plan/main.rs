//! What lightbyte decides, tested from outside: a small world in, the plan out. One binary, so that it is linked once.

mod care;
mod delivery;
mod forecast;
mod guest;
mod parts;
mod planners;
mod races;
mod reconciler;
mod requests;
mod scheduler;
mod why;
mod world;
mod zone;
