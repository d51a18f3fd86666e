//! TLS to a real PostgreSQL: the certificate and its name are checked, or there is no connection.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]
#![allow(clippy::future_not_send, reason = "a test awaits them where it is")]

mod support;

use std::time::Duration;

use bb8::ManageConnection as _;
use mcp_perf::{
    Error, ErrorKind,
    cache::Store as _,
    postgres::{PostgresConnection, PostgresManager, PostgresStore},
};
use support::{certificate::Certificate, postgres::PostgresServer};
use tokio::time::timeout;
use tokio_postgres::NoTls;

const GENEROUS: Duration = Duration::from_secs(30);

/// A server with a certificate for `localhost`, and that certificate.
async fn server() -> (PostgresServer, String) {
    let server = PostgresServer::start();
    let Certificate { certificate, key } = Certificate::of_localhost();
    server.write_file("server.crt", &certificate);
    server.write_file("server.key", &key);
    server.psql("alter system set ssl = on").unwrap();
    server.psql("select pg_reload_conf()").unwrap();
    (server, certificate)
}

fn url(server: &PostgresServer, host: &str, settings: &str) -> String {
    format!("postgres://postgres@{host}:{}/postgres{settings}", server.port())
}

/// Connects, once the server has heard of its certificate.
async fn connected(manager: &PostgresManager) -> PostgresConnection {
    let connected = async {
        loop {
            match manager.connect().await {
                Ok(connection) => return connection,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Tls, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(2)).await; // polling, with a deadline
        }
    };
    timeout(GENEROUS, connected).await.unwrap()
}

async fn is_encrypted(connection: &PostgresConnection) -> bool {
    let sql = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    connection.query_one_cached(sql, &[]).await.unwrap().get(0)
}

async fn error(manager: &PostgresManager) -> Error {
    timeout(GENEROUS, manager.connect()).await.unwrap().map(drop).unwrap_err()
}

#[tokio::test]
async fn certificate_and_name_are_checked() {
    let (server, certificate) = server().await;
    let trusting = |host: &str| {
        let builder = PostgresManager::builder(&url(&server, host, "")).unwrap();
        builder.certificate_authority(&certificate).unwrap().build().unwrap()
    };
    assert!(is_encrypted(&connected(&trusting("localhost")).await).await);

    let another_name = error(&trusting("127.0.0.1")).await;
    assert_eq!(another_name.kind(), ErrorKind::Tls, "{another_name}");
    assert!(std::error::Error::source(&another_name).is_some());
    for mode in ["require", "verify-full"] {
        let settings = format!("?sslmode={mode}");
        let roots = PostgresManager::builder(&url(&server, "localhost", &settings)).unwrap().build().unwrap();
        assert_eq!(error(&roots).await.kind(), ErrorKind::Tls, "the system does not trust it");
    }
    let plain = PostgresManager::builder(&url(&server, "localhost", "")).unwrap().build().unwrap();
    assert!(!is_encrypted(&plain.connect().await.unwrap()).await, "nobody asked for it");
    for wrong in ["", "-----BEGIN CERTIFICATE-----\nhunter2\n-----END CERTIFICATE-----"] {
        let builder = PostgresManager::builder(&url(&server, "localhost", "")).unwrap();
        let error = builder.certificate_authority(wrong).unwrap_err();
        assert!(error.to_string().starts_with("certificate_authority"), "{error}");
    }
}

#[tokio::test]
async fn password_is_bound_to_the_certificate() {
    let (server, certificate) = server().await;
    server.psql("create role server login password 'right'").unwrap();
    let rules =
        "local all all trust\nhost all postgres 127.0.0.1/32 trust\nhostssl all all all scram-sha-256";
    server.write_file("pg_hba.conf", rules);
    server.psql("select pg_reload_conf()").unwrap();
    let url = format!(
        "postgres://server:right@localhost:{}/postgres?channel_binding=require&hostaddr=127.0.0.1",
        server.port()
    );
    let builder = PostgresManager::builder(&url).unwrap();
    let manager = builder.certificate_authority(&certificate).unwrap().build().unwrap();
    let connected = async {
        // Until the server has read its rules it asks for no password, which is refused as well.
        while let Err(error) = manager.connect().await {
            assert!(matches!(error.kind(), ErrorKind::Tls | ErrorKind::Credentials), "{error}");
            tokio::time::sleep(Duration::from_millis(2)).await; // polling, with a deadline
        }
    };
    timeout(GENEROUS, connected).await.unwrap();
}

#[tokio::test]
async fn server_without_tls_is_an_error_of_its_own() {
    let server = PostgresServer::start();
    for settings in ["?sslmode=require", "?sslmode=verify-full"] {
        let url = url(&server, "localhost", settings);
        let manager = PostgresManager::builder(&url).unwrap().build().unwrap();
        let error = error(&manager).await;
        assert_eq!(error.kind(), ErrorKind::Tls);
        assert!(error.to_string().contains("speaks no TLS"), "{error}");
        let own = PostgresManager::builder(&url).unwrap().with_tls(NoTls).build().unwrap();
        assert_eq!(self::error(&own).await.kind(), ErrorKind::Tls);
        let store = PostgresStore::new(&url).unwrap();
        assert_eq!(store.ping().await.unwrap_err().kind(), ErrorKind::Refused);
    }
}

#[tokio::test]
async fn cancellation_is_encrypted_too_and_the_connection_stays() {
    let (server, certificate) = server().await;
    let builder = PostgresManager::builder(&url(&server, "localhost", "")).unwrap();
    let manager = builder.certificate_authority(&certificate).unwrap().build().unwrap();
    let connection = connected(&manager).await;
    for _ in 0..3 {
        let left =
            timeout(Duration::from_millis(50), connection.query_cached("select pg_sleep(600)", &[])).await;
        assert!(left.is_err());
        assert!(is_encrypted(&connection).await);
    }
    assert!(!connection.is_over());
}

#[tokio::test]
async fn connection_whose_cancellation_may_strike_later_is_given_up() {
    let server = PostgresServer::start();
    let builder = PostgresManager::builder(&server.url()).unwrap().with_tls(NoTls);
    let connection = builder.build().unwrap().connect().await.unwrap();
    let left = timeout(Duration::from_millis(50), connection.query_cached("select pg_sleep(600)", &[])).await;
    assert!(left.is_err());
    let error = timeout(GENEROUS, connection.query_cached("select 1", &[])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected);
    assert!(connection.is_over());
}
