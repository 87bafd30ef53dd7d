"""From conditioning to latents to frames: schedules, noise, the rollout loop, decoding."""
