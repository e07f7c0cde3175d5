pytest_plugins = ["pytest_spawner_contract.plugin"]
