"""HQ's certification authority: on this machine, offline, or an organization's."""
