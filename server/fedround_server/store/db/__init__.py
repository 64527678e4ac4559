"""The database: connections, transactions, compiled queries, and the audit trail."""
