"""Kit for users' own tests: a platform over a throw-away store, with scripted upstreams in place of real ones."""
