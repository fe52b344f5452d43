//! What `deploy/` installs is what Kubernetes, Prometheus and orb8's own programs take, and it is the same
//! thing however it is installed.

mod alerts;
mod certificates;
mod chart;
mod kinds;
mod sense;
