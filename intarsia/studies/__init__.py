"""Questions as runnable experiments: each file is one, re-run by one command, and only calls the other rooms."""
