"""From HQ's deliveries to recorded messages: look-ups, opening, refusals, receipts, handlers."""
