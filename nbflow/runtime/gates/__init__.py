"""Gates: a run stops until somebody decides. Asking (`asking`), deciding from anywhere (`deciding`), what is shown."""
