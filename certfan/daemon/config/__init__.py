"""certfan.toml and conf.d/*.toml: their shape, what is wrong with them, and whether they changed."""
