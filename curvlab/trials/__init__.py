"""Many runs of one configuration: ranges of settings, trials that can be continued, executors."""
