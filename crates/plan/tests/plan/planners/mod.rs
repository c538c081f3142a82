//! The planners: what each writes for one object, plan after plan until nothing is left to write.

mod balancers;
mod delete;
mod groups;
mod keep;
mod leases;
mod load;
mod moves;
mod orders;
mod others;
mod place;
mod secrets;
mod size;
mod squatters;
mod volumes;
mod walls;
