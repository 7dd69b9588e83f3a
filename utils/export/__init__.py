"""What an export writes and checks: bundles, whole systems, dashboards, new models."""
