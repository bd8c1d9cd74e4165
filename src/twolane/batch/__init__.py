"""The batch lane: durable, patient, exact. Never imports the online lane."""
