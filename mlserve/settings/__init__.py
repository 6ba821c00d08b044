"""`local` for the embedded servers, `test` for the tests, `production` for everything that faces others."""
