//! What runs: stages, channels, epochs, supervision. The only code that spawns tasks and owns channels.
