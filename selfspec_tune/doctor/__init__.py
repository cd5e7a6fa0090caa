"""What this machine can do, and what the engine makes of it."""

from selfspec_tune.doctor.run import run_doctor

__all__ = ["run_doctor"]
