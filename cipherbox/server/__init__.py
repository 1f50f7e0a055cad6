"""HQ: trio around the pure core.  It never imports what opens an envelope."""
