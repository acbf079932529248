"""Dense models into routed ones, and a routed model of many tasks into that of one."""
