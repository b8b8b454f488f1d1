"""Every option of every program, typed, explained and checked."""
