"""Files and directories that are complete or invisible, locks, progress, and this process's rank."""
