"""What the benchmarks of time, of compiles and of sizes share: the model, the masks, the runners, the rows."""
