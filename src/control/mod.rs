//! Floor 3: desired state, from files and local processes, made into the table the data plane reads.
