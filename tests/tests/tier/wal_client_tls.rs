//! `lakebed wal-client` and a server that speaks TLS: what is asked for is what is got, or nothing.

use std::fs;
use std::path::{Path, PathBuf};

use lakebed_pgtest::{Cluster, InitOptions, Installation, as_postgres, run, wait_until};
use lakebed_tests::{Process, Shape, Tier, free_port};

/// A server whose certificate an authority of its own has signed for `localhost`.
struct Secure {
    cluster: Cluster,
    port: u16,
}

impl Secure {
    fn start(installation: &Installation, certificate: fn(&Path)) -> Secure {
        let options = InitOptions::default();
        let secure = Secure {
            cluster: Cluster::init_with(installation, &options),
            port: free_port(),
        };
        certificate(secure.cluster.home());
        let hba = "local all all trust\nhostssl replication own 127.0.0.1/32 scram-sha-256 clientcert=verify-full\n\
                   hostssl replication all 127.0.0.1/32 scram-sha-256\n\
                   hostnossl replication plain 127.0.0.1/32 scram-sha-256\n";
        fs::write(secure.cluster.data_dir().join("pg_hba.conf"), hba).expect("pg_hba.conf");
        secure
    }

    fn up(&mut self, ssl: bool) {
        let file = |name: &str| self.cluster.home().join(name).display().to_string();
        let settings = [
            format!("ssl={}", if ssl { "on" } else { "off" }),
            format!("ssl_cert_file={}", file("server.crt")),
            format!("ssl_key_file={}", file("server.key")),
            format!("ssl_ca_file={}", file("ca.crt")),
        ];
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        self.cluster.start_on(self.port, &settings);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.cluster.home().join(name)
    }

    fn url(&self, user: &str, host: &str, query: &str) -> String {
        format!("postgresql://{user}:secret@{host}:{}/?{query}", self.port)
    }

    /// How each connection of the client to the server is protected, as the server sees it.
    fn protection(&self) -> String {
        self.cluster.sql(
            "select string_agg(distinct concat_ws(' ', ssl, client_dn), ',') \
             from pg_stat_ssl join pg_stat_replication using (pid)",
        )
    }
}

fn openssl(directory: &Path, script: &str) {
    let mut shell = as_postgres(Path::new("sh"));
    run(shell.current_dir(directory).args(["-euc", script]));
}

/// An authority, and certificates that it signed: of the server for `localhost`, and of the client for the role `own`.
fn signed(directory: &Path) {
    openssl(
        directory,
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.crt
         openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=server \
             -keyout server.key -out server.csr
         printf 'subjectAltName=DNS:localhost' > names
         openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -sha384 \
             -extfile names -out server.crt
         openssl req -newkey rsa:2048 -nodes -subj /CN=own -keyout own.key -out own.csr
         openssl x509 -req -in own.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names -out own.crt
         openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=other -keyout other.key -out other.crt
         chmod 600 *.key",
    );
}

/// As Postgres's manual says for a start.
fn self_signed(directory: &Path) {
    openssl(
        directory,
        "openssl req -new -x509 -days 2 -nodes -text -out server.crt -keyout server.key -subj /CN=localhost \
             -addext subjectAltName=DNS:localhost
         cp server.crt ca.crt
         chmod 600 *.key",
    );
}

fn client(tier: &Tier, url: &str) -> Process {
    let arguments = [
        "wal-client".to_owned(),
        format!("--from={url}"),
        "--tenant=test".to_owned(),
        format!("--connect=lakebed://{}", tier.controller()),
    ];
    Process::start("wal-client", &arguments, &tier.home().join("wal-client.log"))
}

/// The client streams, and the server sees it like this.
fn streams(tier: &Tier, server: &Secure, url: &str, protection: &str) {
    let keeper = client(tier, url);
    let what = format!("the stream: {}", keeper.status());
    wait_until(&what, || keeper.status()["phase"] == "streaming");
    assert_eq!(server.protection(), protection, "{url}");
    assert!(keeper.stop().success());
    wait_until("the slot to be free", || {
        server.cluster.sql("select active from pg_replication_slots") == "f"
    });
}

/// The client ends and says why.
fn ends(tier: &Tier, url: &str, why: &str) {
    let mut keeper = client(tier, url);
    assert!(!keeper.wait().success(), "{url}");
    assert!(keeper.log().contains(why), "{url}: {why}: {}", keeper.log());
}

fn tier_for(installation: &Installation) -> Tier {
    Tier::without_tenant(&Shape {
        shards: 1,
        postgres: installation.clone(),
        ..Shape::default()
    })
}

const ROLES: &str = "create role keeper replication login password 'secret'; \
                     create role own replication login password 'secret'; \
                     create role plain replication login password 'secret'";

fn secures(installation: &Installation) {
    let mut server = Secure::start(installation, signed);
    server.up(true);
    server.cluster.sql(ROLES);
    let tier = tier_for(installation);
    let (ca, other) = (server.path("ca.crt"), server.path("other.crt"));
    let (ca, other) = (ca.display(), other.display());

    // Before anything is made on the tier or the server.
    let url = |query: &str| server.url("keeper", "localhost", query);
    ends(&tier, &url("sslmode=disable"), "no pg_hba.conf entry");
    ends(
        &tier,
        &url(&format!("sslmode=verify-full&sslrootcert={other}")),
        "UnknownIssuer",
    );
    ends(
        &tier,
        &url(&format!("sslmode=require&sslrootcert={other}")),
        "UnknownIssuer",
    );
    ends(
        &tier,
        &url("sslmode=verify-full&sslrootcert=/nowhere.crt"),
        "/nowhere.crt",
    );
    let by_address = server.url(
        "keeper",
        "127.0.0.1",
        &format!("sslmode=verify-full&sslrootcert={ca}"),
    );
    ends(&tier, &by_address, "not valid for name");
    ends(
        &tier,
        &server.url("own", "localhost", "sslmode=require"),
        "client certificate",
    );
    let untied = server.url("plain", "localhost", "sslmode=disable&channel_binding=require");
    ends(&tier, &untied, "channel_binding=require");
    assert_eq!(
        server.cluster.sql("select count(*) from pg_replication_slots"),
        "0"
    );

    let full = format!("sslmode=verify-full&sslrootcert={ca}&channel_binding=require");
    streams(&tier, &server, &url(&full), "t");
    streams(&tier, &server, &url(""), "t");
    let any_name = format!("sslmode=verify-ca&sslrootcert={ca}");
    streams(&tier, &server, &server.url("keeper", "127.0.0.1", &any_name), "t");
    streams(
        &tier,
        &server,
        &server.url("plain", "localhost", "sslmode=disable"),
        "f",
    );
    let home = server.cluster.home().display();
    let own = format!("sslmode=require&sslcert={home}/own.crt&sslkey={home}/own.key");
    streams(&tier, &server, &server.url("own", "localhost", &own), "t /CN=own");

    server.cluster.stop(lakebed_pgtest::Stop::Clean);
    server.up(false);
    let url = server.url("keeper", "localhost", "sslmode=require");
    ends(&tier, &url, "does not speak TLS");
    streams(
        &tier,
        &server,
        &server.url("plain", "localhost", "sslmode=prefer"),
        "f",
    );
}

#[test]
fn a_server_of_15_is_reached_as_sslmode_says() {
    secures(&Installation::default_15());
}

#[test]
fn a_certificate_that_signs_itself_is_trusted_when_it_is_given() {
    let mut server = Secure::start(&Installation::default_15(), self_signed);
    server.up(true);
    server.cluster.sql(ROLES);
    let tier = tier_for(&Installation::default_15());
    let given = format!(
        "sslmode=verify-full&sslrootcert={}",
        server.path("server.crt").display()
    );
    ends(
        &tier,
        &server.url("keeper", "localhost", "sslmode=verify-full"),
        "TLS",
    );
    ends(
        &tier,
        &server.url("keeper", "127.0.0.1", &given),
        "not valid for name",
    );
    streams(&tier, &server, &server.url("keeper", "localhost", &given), "t");
}
