"""Records a run: metrics, rollouts and evaluations in its folder, trackers, progress on the terminal."""
