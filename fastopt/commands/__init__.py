"""What `fastopt train`, `bench` and `info` do; `fastopt.cli` reads their options. Nothing else imports from here."""
